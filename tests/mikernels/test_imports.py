"""What `import mikernels` brings and what it leaves alone, in a process of its own."""

import json
import subprocess
import sys


def run(script):
    """The JSON value that a script prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


COMPUTE = """
x = torch.randn(32, 3)
for estimator in ("grid", "kde", "renyi2"):
    mi = mikernels.mutual_information(x, estimator=estimator)
"""


def test_works_without_triton_and_transformers():
    script = f"""
import json, sys
sys.modules["triton"] = sys.modules["transformers"] = None
import torch, mikernels
{COMPUTE}
print(json.dumps(mi.shape))
"""
    assert run(script) == [3, 3]


def test_brings_no_package_beyond_those_of_torch():
    script = f"""
import json, sys
import torch
x = torch.randn(32, 3)
torch.linalg.eigvalsh(x.T @ x)
before = {{name.partition(".")[0] for name in sys.modules}}
import mikernels
{COMPUTE}
after = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted((after - before) | after & {{"transformers", "sklearn", "matplotlib"}})))
"""
    heavy = {"triton", "transformers", "sklearn", "matplotlib", "scipy", "pandas", "tqdm", "safetensors"}
    brought = set(run(script))
    assert "mikernels" in brought
    assert not brought & heavy


def test_changes_no_setting_of_the_process():
    script = """
import json, os, torch

def settings():
    return [
        dict(os.environ),
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        str(torch.get_default_dtype()),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.initial_seed(),
        torch.get_rng_state().tolist(),
    ]

torch.manual_seed(0)
before = settings()
import mikernels
mikernels.mutual_information(torch.ones(8, 2))
print(json.dumps([before, settings()]))
"""
    before, after = run(script)
    assert after == before
