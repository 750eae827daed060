"""`mi-prune` run as a user runs it, on a tiny random model."""

import json
import os
import re
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from tiny import tiny_model

SHORT = ("--sequence-length=32", "--calibration-tokens=2048", "--evaluation-tokens=512", "--multiple-of=2")


def mi_prune(*args):
    command = [sys.executable, "-m", "pruning.cli", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("models")
    for family in ("Llama", "Bert"):
        tiny_model(family).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return root


def test_prunes_evaluates_saves_and_verifies(folders, tmp_path):
    out = tmp_path / "out"
    done = mi_prune(
        folders / "Llama",
        "--out",
        out,
        "--ratio=0.25",
        "--evaluate=builtin",
        "--verify",
        "--prompt=Once",
        *SHORT,
    )
    assert done.returncode == 0, done.stderr
    for expected in ("perplexity", "dense", "pruned", "[pruned] Once", "outputs differ by 0 of"):
        assert expected in done.stdout
    assert re.search("prune +:", done.stderr)
    assert AutoModelForCausalLM.from_pretrained(out).config.intermediate_size == 30
    manifest = json.loads((out / "mi_prune.json").read_text())
    assert manifest["evaluation"]["windows"] == 16
    assert manifest["evaluation"]["perplexity_pruned"] > 0


def test_second_ratio_starts_from_kept_statistics_and_uneven_layers_are_verified(folders, tmp_path):
    kept = tmp_path / "statistics.safetensors"
    first = mi_prune(folders / "Llama", "--out", tmp_path / "a", "--save-statistics", kept, *SHORT)
    assert first.returncode == 0, first.stderr
    for stage in ("capture", "measure", "repair"):
        assert stage in first.stderr
    options = ("--statistics", kept, "--ratio=0.5", "--repair=lstsq", "--budget=mi", "--verify")
    second = mi_prune(folders / "Llama", "--out", tmp_path / "b", *options, *SHORT)
    assert second.returncode == 0, second.stderr
    assert "capture" not in second.stderr
    assert "Reloaded with pruning.load_model in a fresh process: outputs differ by 0 of" in second.stdout
    assert sum(json.loads((tmp_path / "b" / "mi_prune.json").read_text())["neurons"]["widths"]) == 60


def test_encoder_is_compared_by_its_hidden_states(folders, tmp_path):
    done = mi_prune(
        folders / "Bert", "--out", tmp_path / "out", "--ratio=0.25", "--evaluate=builtin", "--quiet", *SHORT
    )
    assert done.returncode == 0, done.stderr
    assert "hidden-state cosine" in done.stdout
    assert not re.search("prune +:", done.stderr)


def test_own_text_is_used_and_named(folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All happy families are alike. " * 200)
    args = (
        folders / "Llama",
        "--out",
        tmp_path / "out",
        "--ratio=0.25",
        "--calibration",
        text,
        "--evaluate",
        text,
    )
    done = mi_prune(*args, *SHORT)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "mi_prune.json").read_text())["calibration_text"] == str(text)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--ratio=2",), "ratio: expected a number between 0 and 1"),
        (("--calibration=/nowhere.txt",), "/nowhere.txt"),
        (("--statistics=/nowhere.st",), "/nowhere.st: no such file of statistics"),
        (("--budget=mi", "--ratio=0.5", "--max-layer-ratio=0.2", "--multiple-of=2"), "lets 8 of a layer go"),
        (("--ratio=0.01", "--multiple-of=8"), "rounded to a multiple of 8, keeps 40"),
        (("--sequence-length=1000000",), "expected text of at least 1000000 tokens"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folders, tmp_path, args, message):
    done = mi_prune(folders / "Llama", "--out", tmp_path / "out", "--quiet", *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_models_own_folder_is_not_overwritten(folders):
    done = mi_prune(folders / "Llama", "--out", folders / "Llama", "--force")
    assert done.returncode == 1
    assert "expected a folder that does not hold the input" in done.stderr


def test_folder_that_is_not_empty_is_refused_before_the_model_is_loaded(folders, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = mi_prune(folders / "Llama", "--out", tmp_path)
    assert done.returncode == 1
    assert "expected a new or empty folder" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
