"""A kernel compiles for a chip of each vendor, with tensor-core instructions and without spills.

Here the default one in its default configuration; `make check-kernels` compiles all of them for all chips.
"""

import os
import re
import subprocess
import sys

CHIPS = ("sm_90", "gfx942")


def test_the_default_kernel_compiles_to_tensor_core_instructions_without_spills():
    command = ["-m", "benchmarks.gpu.compile", "--chips", *CHIPS, "--kernel", "grid_kernel", "--no-record"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith(CHIPS)]
    assert len(lines) == len(CHIPS)
    assert all(re.search(r"MMA'|v_mfma", line) for line in lines)
