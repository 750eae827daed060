"""Kernels compile for a chip of each vendor, with tensor-core instructions and without spills.

Here in their default configurations; `make check-kernels` compiles all of them for all chips.
"""

import os
import re
import subprocess
import sys

CHIPS = {"sm_90": 10, "gfx942": 7}
"""Products of `grid`, `kde` and `renyi2` in the precisions that each chip has."""


def test_kernels_compile_to_tensor_core_instructions_without_spills():
    command = ["-m", "benchmarks.gpu.compile", "--chips", *CHIPS, "--no-record", "--defaults-only"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for chip, n_products in CHIPS.items():
        lines = [line for line in done.stdout.splitlines() if line.startswith(chip)]
        tile_kernels = [line for line in lines if re.search(r"\b(grid|kde|renyi2)_kernel", line)]
        assert len(tile_kernels) == n_products
        assert len(lines) >= len(tile_kernels) + 9
        assert all(re.search(r"MMA'|v_mfma", line) for line in tile_kernels)
