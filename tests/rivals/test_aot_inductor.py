"""AOTInductor compiles a module around the operator, which stays in Python; it needs a C++ compiler and minutes."""

import shutil
import subprocess
import sys

import pytest
import torch

from mikernels import mutual_information


class Redundancy(torch.nn.Module):
    def forward(self, x):
        return mutual_information(x.relu() + x).fill_diagonal_(0).amax(1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")
def test_a_package_runs_where_mikernels_is_imported(tmp_path):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(Redundancy(), (x,))
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "module.pt2"))
    assert torch.equal(torch._inductor.aoti_load_package(package)(x), Redundancy()(x))
    load = f"import torch; torch._inductor.aoti_load_package({package!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False)
    assert "Could not find schema for mikernels::mutual_information" in done.stderr
