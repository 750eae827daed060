"""Killed at any moment, the command leaves its output whole or absent, and the user's files untouched."""

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from tiny import tiny_model, tiny_tokenizer

KILLS = 20

FORKS = """
import contextlib, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pruning.cli import main

def run(number):
    out = f"out-{number % 2}"  # every second one replaces what another has left
    arguments = ["model", "--out", out, "--force", "--save-statistics", "statistics.safetensors", "--quiet"]
    options = ["--ratio=0.5", "--multiple-of=2", "--sequence-length=32", "--calibration-tokens=512"]
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        return main([*arguments, *options, "--calibration=text.txt"])

def fork(number):
    return os.fork() or os._exit(run(number))

assert run(0) == 0  # also imports everything that the forks need
start = time.perf_counter()
assert os.waitpid(fork(0), 0)[1] == 0
whole = time.perf_counter() - start
print("complete", flush=True)
moments = random.Random(0)
for number in range(int(sys.argv[1])):
    sys.stdin.readline()
    child = fork(number)
    time.sleep(moments.random() * whole)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(f"killed {number}", flush=True)
"""


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
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "mine.txt").write_text("mine")
    inputs = contents(tmp_path)
    outputs = [tmp_path / "out-0", tmp_path / "out-1"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(KILLS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "complete\n"
        complete, statistics = result(outputs[0]), (tmp_path / "statistics.safetensors").read_bytes()
        assert AutoModelForCausalLM.from_pretrained(outputs[0]).config.intermediate_size == 20
        for number in range(KILLS):
            process.stdin.write("next\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"killed {number}\n"
            found = contents(tmp_path)
            assert {name: found.get(name) for name in inputs} == inputs
            assert all(result(out) == complete for out in outputs if out.exists())
            assert (tmp_path / "statistics.safetensors").read_bytes() == statistics
    assert process.returncode == 0
