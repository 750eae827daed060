"""The script for a GPU runs without one, on tiny shapes, and the cost model adds up."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from benchmarks.cost import CHIP, floor, work


def test_dry_run_passes():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--dry-run"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 not as they should be" in done.stdout


@pytest.mark.parametrize(
    ("estimator", "m", "expected"),
    [("grid", 4096, 1.27e14), ("kde", 1024, 1.27e14), ("renyi2", 1024, 6.35e13)],
)
def test_operations_of_a_layer_of_7b(estimator, m, expected):
    """N^2 / 2 pairs of 2 G^2 M, 2 M^2 or M^2 operations, and at most a tenth for tiles on the diagonal."""
    counted = work(estimator, 11008, m, "fp16", "sm_90").matrix_ops
    assert expected * 0.98 < counted < 1.1 * expected


def test_floor_is_the_largest_of_its_parts_and_shrinks_with_the_operands():
    for name, chip in CHIP.items():
        seconds, binding = floor("grid", 11008, 4096, "int8", name)
        parts = work("grid", 11008, 4096, "int8", chip.family).seconds(chip, "int8")
        assert seconds == max(parts.values()) == parts[binding]
        assert seconds < floor("grid", 11008, 4096, "fp16", name)[0]
