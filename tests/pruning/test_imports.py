import subprocess
import sys

CODE = """
import os, sys
sys.modules["triton"] = None
environment = dict(os.environ)
import mikernels, pruning, pruning.cli, torch
assert dict(os.environ) == environment, "an environment variable was changed"
x = torch.randn(64, 4)
assert mikernels.mutual_information(x).shape == (4, 4)
"""


def test_both_packages_work_where_triton_cannot_be_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
