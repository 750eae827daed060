"""Every kernel compiles for every chip, with tensor-core instructions and without spills.

Here in its default configuration; `make check-kernels` compiles those that only autotuning tries, too.
"""

import os
import re
import subprocess
import sys

import pytest

CHIPS = {"sm_80": 7, "sm_90": 10, "sm_100": 10, "gfx942": 7}
"""Products of `grid`, `kde` and `renyi2` in the precisions that each chip has."""


@pytest.fixture(scope="module")
def compilers():
    """One process for each chip, all started at once."""
    return {
        chip: subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.gpu.compile",
                "--chips",
                chip,
                "--no-record",
                "--defaults-only",
            ],
            env=os.environ | {"TRITON_INTERPRET": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for chip in CHIPS
    }


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_to_tensor_core_instructions_without_spills(chip, compilers):
    output, _ = compilers[chip].communicate()
    assert compilers[chip].returncode == 0, output
    lines = [line for line in output.splitlines() if line.startswith(chip)]
    tile_kernels = [line for line in lines if re.search(r"\b(grid|kde|renyi2)_kernel", line)]
    assert len(tile_kernels) == CHIPS[chip]
    assert len(lines) >= len(tile_kernels) + 9
    assert all(re.search(r"MMA'|v_mfma", line) for line in tile_kernels)
