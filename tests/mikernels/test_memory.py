"""Resident memory beyond inputs and result, at its peak, in a process of its own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets malloc as on Linux")

MIB = 2**20
ALLOWANCE = 16 * MIB
"""For scratch space of the BLAS libraries and small blocks that malloc keeps."""

MEASURE = """
from pathlib import Path
import torch
from mikernels import GridStream, mutual_information, top_pairs

def peak():
    # Not ru_maxrss, which starts at the peak of the parent process where that was larger.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def call(x):
    return {call}

x = {make_input}
call(x[:64, :16].clone())  # loads what is loaded once
before = peak()
result = call(x)
print(peak() - before)
"""


def peak_bytes(make_input, call):
    """How much the peak memory of a process grows with a call."""
    # Without a fixed threshold glibc keeps freed blocks of up to 32 MiB, more or fewer of them.
    settings = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(make_input=make_input, call=call)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    ("n_samples", "n_variables", "options", "budget"),
    [
        # The joint tables of all pairs would take 1 GB, those of a row of tiles 130 MB.
        (1024, 1000, "", 32 * MIB),
        (8192, 512, "", 48 * MIB),
        (1024, 600, "precision='fp32'", 32 * MIB),
        (1024, 600, "transform='standardize'", 32 * MIB),
        (64, 1100, "estimator='kde'", 16 * MIB),
        (64, 1100, "estimator='renyi2'", 32 * MIB),
    ],
)
def test_matrix_stays_within_its_budget(n_samples, n_variables, options, budget):
    used = peak_bytes(
        f"torch.randn({n_samples}, {n_variables}, dtype=torch.float64)",
        f"mutual_information(x, memory_budget={budget}, {options})",
    )
    assert used < budget + 4 * n_variables**2 + ALLOWANCE


def test_best_pairs_need_no_matrix():
    budget = 32 * MIB  # the matrix would take 100 MB
    used = peak_bytes("torch.randn(16, 5000)", f"top_pairs(x, 100, nodes=2, memory_budget={budget})")
    assert used < budget + ALLOWANCE


def test_ranking_of_ties_stays_within_the_budget():
    budget = 112 * MIB
    used = peak_bytes("torch.randn(16384, 512).relu_()", f"top_pairs(x, 100, memory_budget={budget})")
    assert used < budget + ALLOWANCE


def test_stream_stays_within_its_budget():
    budget = 160 * MIB  # of which the counts take 128, and their products for a whole batch would take 64
    script = f"GridStream(x[:512], memory_budget={budget})"
    call = f"(lambda stream: (stream.update(x), stream.mutual_information()))({script})"
    assert peak_bytes("torch.randn(16_384, 256)", call) < budget + ALLOWANCE


def test_stream_takes_a_part_of_a_batch_at_a_time():
    # The shares of the whole batch would take 128 MiB; those of 4096 samples, and the counts, take 44.
    assert peak_bytes("torch.randn(131_072, 64)", "GridStream(x[:512]).update(x)") < 80 * MIB
