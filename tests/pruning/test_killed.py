"""Killed at any moment, the command leaves its output whole or absent, and the user's files untouched."""

import json
import random
from pathlib import Path

import forks
from transformers import AutoModelForCausalLM

from tiny import tiny_model, tiny_tokenizer

KILLS = 20
OPTIONS = (
    "--ratio=0.5",
    "--multiple-of=2",
    "--sequence-length=32",
    "--calibration-tokens=512",
    "--device=cpu",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def result(folder: Path) -> dict[str, bytes]:
    """The files of a result, with a manifest that does not depend on the time and the folder."""
    files = contents(folder)
    manifest = json.loads(files["mi_prune.json"])
    for name in ("seconds", "peak_bytes", "command"):
        del manifest[name]
    return files | {"mi_prune.json": json.dumps(manifest).encode()}


def test_output_is_whole_or_absent_and_inputs_untouched(tmp_path):
    tiny_model("Llama", num_hidden_layers=2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "mine.txt").write_text("mine")
    inputs = contents(tmp_path)
    common = (
        "model",
        "--force",
        "--save-statistics=statistics.safetensors",
        "--calibration=text.txt",
        *OPTIONS,
    )
    outputs = ["out-0", "out-1"]
    whole = forks.seconds_of(tmp_path, *common, "--out=out-0")
    complete, statistics = result(tmp_path / "out-0"), (tmp_path / "statistics.safetensors").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out-0").config.intermediate_size == 20
    moments, killed = random.Random(0), 0  # noqa: S311
    for number in range(KILLS):
        # Every second run replaces what another has left.
        child = forks.start(tmp_path, *common, f"--out={outputs[number % 2]}")
        killed += forks.kill_after(moments.random() * whole, child)
        found = contents(tmp_path)
        assert {name: found.get(name) for name in inputs} == inputs
        assert all(result(tmp_path / out) == complete for out in outputs if (tmp_path / out).exists())
        assert (tmp_path / "statistics.safetensors").read_bytes() == statistics
    assert killed
