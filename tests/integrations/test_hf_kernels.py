"""The build for Hugging Face's `kernels`, loaded by it in a process without NumPy."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mikernels import mutual_information, top_pairs
from mikernels.integrations.hf_kernels import build, relative

from samples import correlated

LOAD = """
import importlib.util, pathlib, sys
from kernels import get_local_kernel
kernel = get_local_kernel(pathlib.Path(sys.argv[1]), backend="cpu")
"""

AS_KERNELS_DOES = """
import importlib.util, json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "build" / "torch-cpu"
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""

COMPUTE = """
import torch
x = torch.load(sys.argv[2])
found = {
    "grid": kernel.mutual_information(x),
    "adaptive": kernel.mutual_information(x, estimator="adaptive"),
    "rounded": kernel.mutual_information((4 * x).round().bfloat16()),
    "reference": kernel.mutual_information(x, impl="reference"),
    "kde": kernel.mutual_information(x, x.square(), estimator="kde", calibrate=True),
    "pairs": list(kernel.top_pairs(x, 3)),
    "compiled": torch.compile(lambda x: kernel.mutual_information(x), fullgraph=True, backend="eager")(x),
}
assert "mikernels" not in sys.modules
torch.save(found, sys.argv[3])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("kernel")
    build(out)
    return out


@pytest.fixture(scope="module")
def x():
    return correlated(200, 5)


def run(script, *arguments):
    """What a script stores, in a process that cannot import this package."""
    path = os.pathsep.join(p for p in sys.path if p and not (Path(p) / "mikernels").exists())
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=arguments[0],
    )
    assert done.returncode == 0, done.stderr
    return torch.load(arguments[-1])


def expected(x):
    return {
        "grid": mutual_information(x),
        "adaptive": mutual_information(x, estimator="adaptive"),
        "rounded": mutual_information((4 * x).round().bfloat16()),
        "reference": mutual_information(x, impl="reference"),
        "kde": mutual_information(x, x.square(), estimator="kde", calibrate=True),
        "pairs": list(top_pairs(x, 3)),
        "compiled": mutual_information(x),
    }


def test_the_folder_gives_the_same_bits_without_numpy(folder, x, tmp_path):
    torch.save(x, tmp_path / "x.pt")
    hidden = 'import sys\nfor name in ("numpy", "triton"):\n    sys.modules[name] = None\n'
    found = run(hidden + AS_KERNELS_DOES + COMPUTE, folder, tmp_path / "x.pt", tmp_path / "out.pt")
    torch.testing.assert_close(found, expected(x), rtol=0, atol=0)


@pytest.mark.skipif(importlib.util.find_spec("kernels") is None, reason="kernels is not installed")
def test_kernels_loads_the_folder(folder, x, tmp_path):
    torch.save(x, tmp_path / "x.pt")
    found = run(LOAD + COMPUTE, folder, tmp_path / "x.pt", tmp_path / "out.pt")
    torch.testing.assert_close(found, expected(x), rtol=0, atol=0)


def test_the_folder_and_the_package_live_in_one_process(folder, x):
    place = folder / "build" / "torch-cpu"
    name = json.loads((place / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, place / "__init__.py")
    kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    assert torch.equal(kernel.mutual_information(x), mutual_information(x))
    del sys.modules[name]


def test_other_packages_are_imported_only_where_their_arrays_come_in(folder):
    everywhere = set(sys.stdlib_module_names) | {"torch", "triton"}
    in_functions = everywhere | {"numpy", "pandas", "polars", "pyarrow"}
    for file in (folder / "build" / "torch-cuda").rglob("*.py"):
        for found in re.finditer(r"^( *)(?:import|from) (\w[\w.]*)", file.read_text(), re.MULTILINE):
            allowed = in_functions if found[1] else everywhere
            assert found[2].partition(".")[0] in allowed, (file, found[0])
    assert not list(folder.rglob("integrations"))
    assert (folder / "build" / "torch-rocm" / "tables" / "gaussian.json").exists()


def test_an_import_that_cannot_be_made_relative_is_named():
    assert relative("from mikernels.a import b", Path("c/d.py"), "k") == "from ..a import b"
    assert relative("    from mikernels import ops", Path("d.py"), "k") == "    from . import ops"
    with pytest.raises(ValueError, match=r"d.py: expected imports of the form .* got 'import mikernels.api'"):
        relative("import mikernels.api", Path("d.py"), "k")
