"""Memory that goes back to the system."""

import platform
import subprocess
import sys

import pytest

from pruning.model import free

HOLES = """
import runpy, sys
import torch
release_free_memory = runpy.run_path(sys.argv[1])["release_free_memory"]  # the package takes seconds to import

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

last = torch.zeros(6 * 2**20)
del last  # from here on tensors of up to 24 MB come from the heap
before, kept = resident(), []
large = []
for _ in range(30):
    large.append(torch.ones(5 * 2**20))
    kept.append(torch.ones(2**17))  # too large for the holes that there were
del large
print(resident() - before)
release_free_memory()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep no holes, or say not")
def test_holes_between_small_tensors_are_given_back():
    command = [sys.executable, "-c", HOLES, free.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, after = map(float, done.stdout.split())
    assert kept > 100
    assert after < 20
