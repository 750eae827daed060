"""What can be imported where, and which folder of the product may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pruning

WITHOUT_TRITON = """
import os, sys
sys.modules["triton"] = None
environment = dict(os.environ)
import mikernels, pruning, pruning.cli, torch
assert dict(os.environ) == environment, "an environment variable was changed"
x = torch.randn(64, 4)
assert mikernels.mutual_information(x).shape == (4, 4)
"""
WITHOUT_EXTRA = """
import sys
sys.argv = sys.argv[1:]
for name in ("transformers", "safetensors", "tqdm"):
    sys.modules[name] = None
{statement}
"""
MESSAGE = (
    "pruning: expected transformers, safetensors, tqdm to be installed; run: pip install 'mikernels[prune]'"
)
FOLDERS = [
    "threshold",
    "settings",
    "progress",
    "model",
    "observe",
    "repair",
    "choose",
    "report",
    "prepare",
    "planning",
    "paths",
    "layer_by_layer",
    "pipeline",
    "sweeping",
    "from_disk",
    "terminal",
    "arguments",
    "launch",
    "comparing",
    "report_command",
    "cli",
    "demo",
]
"""Each may import only those before it, and itself if it is a folder."""


def python(code, *args):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


def test_both_packages_work_without_triton():
    done = python(WITHOUT_TRITON)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "statement"),
    [
        ("python", "import pruning"),
        ("/usr/bin/mi-prune", "from pruning.cli import main"),  # what the installed command runs
    ],
)
def test_without_the_extra_the_error_says_what_to_install(program, statement):
    done = python(WITHOUT_EXTRA.format(statement=statement), program)
    assert done.returncode == 1
    if program == "python":
        assert done.stderr.rstrip().endswith(f"ImportError: {MESSAGE}")
    else:
        assert done.stderr == MESSAGE + "\n"


def modules():
    root = Path(pruning.__file__).parent
    return {path.relative_to(root).with_suffix(""): path for path in root.rglob("*.py")}


def imported(path):
    """The parts after `pruning.` of every module that a file imports from the product."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1:] for name in names if name.split(".")[0] == "pruning")


def test_no_import_of_the_product_runs_against_the_order_of_its_folders():
    checked = 0
    for name, path in modules().items():
        if name.name == "__init__":
            continue
        for module in imported(path):
            assert FOLDERS.index(module[0]) <= FOLDERS.index(name.parts[0]), f"{name} imports {module}"
            checked += 1
    assert checked > 80
