"""Every kernel and configuration builds for every chip, with tensor-core instructions and without spills."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_to_tensor_core_instructions_without_spills(chip):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile", "--chips", chip, "--no-record"],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(chip)]
    assert len(lines) >= 16
    assert all(re.search(r"MMA'|v_mfma", line) for line in lines)
