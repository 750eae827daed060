"""Every kernel and configuration builds for every chip, with tensor-core instructions and without spills."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHIPS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def compilers():
    """One process a chip, all at once."""
    return {
        chip: subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.compile", "--chips", chip, "--no-record"],
            env=os.environ | {"TRITON_INTERPRET": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for chip in CHIPS
    }


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_to_tensor_core_instructions_without_spills(chip, compilers):
    said, _ = compilers[chip].communicate()
    assert compilers[chip].returncode == 0, said
    lines = [line for line in said.splitlines() if line.startswith(chip)]
    of_tiles = [line for line in lines if re.search(r"\b(grid|kde|renyi2)_kernel", line)]
    assert len(of_tiles) >= 14
    assert len(lines) >= len(of_tiles) + 9
    assert all(re.search(r"MMA'|v_mfma", line) for line in of_tiles)
