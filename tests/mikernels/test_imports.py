"""What `import mikernels` loads and what it leaves alone, in a process of its own."""

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
for estimator in ("grid", "kde", "renyi2", "adaptive"):
    for impl in ("torch", "reference"):
        mi = mikernels.mutual_information(x, estimator=estimator, impl=impl, calibrate=True)
mikernels.mutual_information(x, x.square(), bandwidth="loo")
mikernels.mutual_information(x, transform="standardize")
mikernels.bits(mikernels.top_pairs(x, 2).mi)
mikernels.information_correlation(mikernels.pairs_above(x, 0.1).mi)
stream = mikernels.GridStream(x)
stream.update(x)
stream.mutual_information()
null = mikernels.null_distribution(32, draws=20)
null.p_value(mikernels.mutual_information(x))
reliability = mikernels.split_half_reliability(x)
mikernels.samples_for(mikernels.Reliability(32, 0.5, 0.6))
"""


def test_everything_works_with_torch_and_numpy_alone():
    script = f"""
import json, sys
for name in ("triton", "transformers", "safetensors", "tqdm", "scipy", "sklearn"):
    sys.modules[name] = None
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
    heavy = {"triton", "transformers", "sklearn", "matplotlib", "scipy", "tqdm", "safetensors"}
    heavy |= {"pandas", "polars", "pyarrow", "anndata", "jax", "cupy"}  # before an array of theirs comes in
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
