"""Resident memory beyond inputs and result, at its peak, each time in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets malloc as on Linux")

MIB = 2**20
ALLOWANCE = 16 * MIB
"""For scratch space of the BLAS libraries and small blocks that malloc keeps."""

SERVER = """
import json, os, sys
from pathlib import Path
import torch
from mikernels import GridStream, mutual_information, top_pairs
from mikernels.networks import clr_pairs

def peak():
    # Not ru_maxrss, which starts at the peak of the parent process where that was larger.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def growth(make_input, call):
    run = eval("lambda x: " + call)
    x = eval(make_input)
    run(x[:64, :16].clone())  # loads what is loaded once
    before = peak()
    result = run(x)
    return peak() - before

for line in sys.stdin:
    if os.fork() == 0:
        print(growth(*json.loads(line)), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def server():
    """A process that has imported everything and forks for every measurement."""
    # Without a fixed threshold glibc keeps freed blocks of up to 32 MiB, more or fewer of them.
    settings = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=os.environ | settings, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def peak_bytes(server):
    """How much the peak memory of a process grows with a call."""

    def measure(make_input, call):
        print(json.dumps([make_input, call]), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    return measure


@pytest.mark.parametrize(
    ("n_samples", "n_variables", "options", "budget"),
    [
        # The joint tables of all pairs would take 256 MB, those of a row of tiles 65 MB.
        (256, 500, "", 32 * MIB),
        # The shares of all variables would take 67 MB, beside ranks of 17 MB.
        (65536, 64, "", 56 * MIB),
        (2048, 200, "precision='fp32'", 32 * MIB),
        (2048, 200, "transform='standardize'", 32 * MIB),
        (64, 1100, "estimator='kde'", 16 * MIB),
        (64, 1100, "estimator='renyi2'", 32 * MIB),
    ],
)
def test_matrix_stays_within_its_budget(peak_bytes, n_samples, n_variables, options, budget):
    used = peak_bytes(
        f"torch.randn({n_samples}, {n_variables}, dtype=torch.float64)",
        f"mutual_information(x, memory_budget={budget}, {options})",
    )
    assert used < budget + 4 * n_variables**2 + ALLOWANCE


def test_best_pairs_need_no_matrix(peak_bytes):
    budget = 32 * MIB  # the matrix would take 100 MB
    used = peak_bytes("torch.randn(16, 5000)", f"top_pairs(x, 100, nodes=2, memory_budget={budget})")
    assert used < budget + ALLOWANCE


def test_best_scores_need_no_matrix(peak_bytes):
    budget = 24 * MIB  # the matrix would take 64 MB
    used = peak_bytes("torch.randn(16, 4000)", f"clr_pairs(x, k=100, nodes=2, memory_budget={budget})")
    assert used < budget + ALLOWANCE


def test_ranking_of_ties_stays_within_the_budget(peak_bytes):
    budget = 112 * MIB
    used = peak_bytes(
        "torch.randn(16384, 512).relu_()", f"top_pairs(x, 100, nodes=2, memory_budget={budget})"
    )
    assert used < budget + ALLOWANCE


def test_stream_stays_within_its_budget(peak_bytes):
    budget = 64 * MIB  # of which the counts take 32, and the shares of a whole batch would take 64
    script = f"GridStream(x[:512], memory_budget={budget})"
    call = f"(lambda stream: (stream.update(x), stream.mutual_information()))({script})"
    assert peak_bytes("torch.randn(32_768, 128)", call) < budget + ALLOWANCE


def test_stream_takes_a_part_of_a_batch_at_a_time(peak_bytes):
    # The shares of the whole batch would take 128 MiB; those of 4096 samples, and the counts, take 44.
    assert peak_bytes("torch.randn(524_288, 16)", "GridStream(x[:512]).update(x)") < 80 * MIB
