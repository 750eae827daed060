"""Killed at any moment, the command leaves its output whole or absent, and the user's files untouched."""

import os
import subprocess
import sys
from pathlib import Path

import transformers
from safetensors import safe_open

from tiny import tiny_model, tiny_tokenizer

KILLS = 20

FORKS = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pruning.cli import main

def run(number):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        out = f"out-{number % 2}"  # the second half replaces what the first has left
        arguments = ["model", "--out", out, "--force", "--save-statistics", "statistics.safetensors", "--quiet"]
        options = ["--ratio=0.5", "--multiple-of=2", "--sequence-length=32", "--calibration-tokens=512"]
        os._exit(main([*arguments, *options, "--calibration=text.txt"]))
    return child

start = time.perf_counter()
_, status = os.waitpid(run(0), 0)
assert status == 0, status
whole = time.perf_counter() - start
moments = random.Random(0)
for number in range(int(sys.argv[1])):
    child = run(number)
    time.sleep(moments.random() * whole)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(f"killed {number}", flush=True)
    sys.stdin.readline()
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_output_is_whole_or_absent_and_inputs_untouched(tmp_path):
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "mine.txt").write_text("mine")
    inputs = contents(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(KILLS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for number in range(KILLS):
            assert process.stdout.readline() == f"killed {number}\n"
            found = contents(tmp_path)
            assert {name: found.get(name) for name in inputs} == inputs
            for out in (tmp_path / "out-0", tmp_path / "out-1"):
                if out.exists():
                    pruned = transformers.AutoModelForCausalLM.from_pretrained(out)
                    assert pruned.config.intermediate_size == 20
                    assert (out / "mi_prune.json").stat().st_size > 0
            if (tmp_path / "statistics.safetensors").exists():
                with safe_open(tmp_path / "statistics.safetensors", "pt") as file:
                    assert len(file.keys()) > 0
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
