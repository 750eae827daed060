"""Resident memory beyond inputs and result, at its peak, in a process of its own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ru_maxrss and sets malloc as on Linux")

MIB = 2**20
ALLOWANCE = 16 * MIB
"""For scratch space of the BLAS libraries and small blocks that malloc keeps."""

MEASURE = """
import resource, torch
from mikernels import mutual_information, top_pairs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

x = {make_input}
mutual_information(x[:64, :16].clone(), {options})  # loads what is loaded once
before = peak()
result = {call}(x, {arguments} memory_budget={budget}, {options})
print(peak() - before - {result_bytes})
"""


def extra_bytes(n_samples, n_variables, options, budget, *, call="mutual_information", ties=False):
    """Peak memory of a call beyond its input and result, in bytes."""
    script = MEASURE.format(
        make_input=f"torch.randn({n_samples}, {n_variables})" + ".relu_()" * ties,
        call=call,
        arguments="100," if call == "top_pairs" else "",
        options=options,
        budget=budget,
        result_bytes=0 if call == "top_pairs" else 4 * n_variables**2,
    )
    # Without a fixed threshold glibc keeps freed blocks of up to 32 MiB, a few at random.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    ("n_samples", "n_variables", "options", "budget"),
    [
        # The joint tables of all pairs would take 2.3 GB, those of a row of tiles 200 MB.
        (1024, 1500, "", 96 * MIB),
        (1024, 600, "precision='fp32'", 128 * MIB),
        (1024, 600, "transform='standardize'", 128 * MIB),
        (64, 1100, "estimator='kde'", 24 * MIB),
        (64, 1100, "estimator='renyi2'", 104 * MIB),
    ],
)
def test_matrix_stays_within_its_budget(n_samples, n_variables, options, budget):
    assert extra_bytes(n_samples, n_variables, options, budget) < budget + ALLOWANCE


def test_best_pairs_need_no_matrix():
    budget = 96 * MIB  # the matrix would take 324 MB
    assert extra_bytes(16, 9000, "nodes=2", budget, call="top_pairs") < budget + ALLOWANCE


def test_ranking_of_ties_stays_within_the_budget():
    budget = 224 * MIB
    assert extra_bytes(16_384, 512, "", budget, ties=True) < budget + ALLOWANCE
