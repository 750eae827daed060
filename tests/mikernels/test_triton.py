"""What is particular to the kernels: that they ran, their two ways to load, and what stops them."""

import os
import subprocess
import sys

import pytest
import torch

from mikernels import memory
from mikernels.triton_impl import launch
from mikernels.triton_impl.configs import CHIPS, configs

from samples import (
    GPU,
    Method,
    correlated,
    gaussian,
    mutual_information,
    options,
    over_methods,
    rounding,
    smallest_budget,
    top_pairs,
)

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # log2(0) beyond the edges, never stored

INT8 = Method("triton", "grid", "rank", "int8")


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels of tiles that were launched."""
    names = []
    original = launch.Launcher.run_tiles

    def run_tiles(self, kernel, *args, **keywords):
        names.append(kernel.__name__)
        original(self, kernel, *args, **keywords)

    monkeypatch.setattr(launch.Launcher, "run_tiles", run_tiles)
    return names


@over_methods("triton")
def test_kernels_are_what_runs(method, launched):
    mutual_information(gaussian(20, 3), **options(method))
    assert set(launched) == {f"{method.estimator}_kernel"}


def test_torch_launches_no_kernel(launched):
    mutual_information(gaussian(20, 3), impl="torch")
    assert launched == []


@pytest.mark.parametrize("n_samples", [8, 37, 257, 1000])
def test_int8_matrix_is_that_of_the_torch_implementation(n_samples):
    x = correlated(n_samples, 20)
    mi = mutual_information(x, **options(INT8))
    torch.testing.assert_close(mi, mutual_information(x, impl="torch"), rtol=0, atol=2e-6)


@pytest.mark.skipif(GPU, reason="a GPU has one way to load")
@over_methods("triton", "grid")
def test_descriptors_load_what_pointers_load(method, monkeypatch):
    x = correlated(37, 20)
    expected = mutual_information(x, **options(method))
    monkeypatch.setattr(launch, "has_descriptors", lambda chip: True)
    assert torch.equal(mutual_information(x, **options(method)), expected)


@over_methods("triton")
def test_memory_that_held_nan_before_leaves_no_trace(method, monkeypatch):
    x, y = correlated(20, 30).split([13, 17], dim=1)
    expected = [mutual_information(x, **options(method)), mutual_information(x, y, **options(method))]
    empty = torch.Tensor.new_empty

    def poisoned(self, *args, **keywords):
        tensor = empty(self, *args, **keywords)
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.view(torch.uint8).fill_(0x7F)  # its NaN
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    again = [mutual_information(x, **options(method)), mutual_information(x, y, **options(method))]
    for got, clean in zip(again, expected, strict=True):
        assert torch.equal(got, clean)


@over_methods("triton")
def test_memory_budget_changes_no_bit(method):
    x = correlated(20, 9)
    needed = smallest_budget(x, **options(method))
    tight = mutual_information(x, memory_budget=2 * needed, **options(method))
    roomy = mutual_information(x, **options(method))
    if GPU or method.precision == "int8":
        assert torch.equal(tight, roomy)
    else:  # the interpreter's floating-point products are numpy's, whose order of sums depends on the shape
        torch.testing.assert_close(tight, roomy, **rounding(method))


@pytest.mark.parametrize("nodes", [100, 250])
def test_tables_in_several_blocks_over_several_tiles(nodes, small_tiles):
    x = correlated(40, 2000 // nodes)
    mi = mutual_information(x, nodes=nodes, **options(INT8))
    torch.testing.assert_close(mi, mutual_information(x, nodes=nodes, impl="torch"), rtol=0, atol=5e-6)


def test_smaller_chunks_follow_when_a_gpu_is_full(monkeypatch, small_tiles):
    x = correlated(20, 50)
    keywords = options(INT8)
    expected = mutual_information(x, **keywords)
    limit = []

    def can_allocate(n_bytes, device):
        limit.append(n_bytes)
        return n_bytes < limit[0] / 3

    monkeypatch.setattr(memory, "can_allocate", can_allocate)
    monkeypatch.setattr(memory, "allocates_eagerly", lambda device: True)
    with pytest.warns(UserWarning, match="GB free: going on with chunks of"):
        assert torch.equal(mutual_information(x, memory_budget=2**20, **keywords), expected)
    assert len(limit) > 1


def test_top_pairs_need_no_matrix(monkeypatch, small_tiles):
    """Of a matrix of 120 x 120 no tensor is ever made."""
    x = correlated(20, 120)
    seen = []
    original = torch.empty

    def recorded(*args, **keywords):
        tensor = original(*args, **keywords)
        seen.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", recorded)
    assert len(top_pairs(x, 5, **options(INT8)).mi) == 5
    assert seen
    assert max(seen) < 120 * 120


def run_without_interpreter(script):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().splitlines()[-1]


def test_triton_on_a_cpu_without_the_interpreter_is_an_error():
    script = "import torch, mikernels; mikernels.mutual_information(torch.randn(20, 3), impl='triton')"
    said = run_without_interpreter(script)
    assert said.startswith("ValueError: impl: 'triton' expects data on a GPU, or Triton's interpreter")
    assert said.endswith("got device 'cpu'")


def test_precision_that_a_chip_lacks_is_an_error(monkeypatch):
    monkeypatch.setitem(CHIPS, "interpreter", CHIPS["sm_80"])
    if GPU:
        pytest.skip("the interpreter stands in for a chip without fp8")
    with pytest.raises(ValueError, match="expects one of 'int8', 'fp16', 'fp32', got 'fp8'"):
        mutual_information(gaussian(20, 3), impl="triton", precision="fp8")


def test_every_chip_has_configurations_of_whole_blocks():
    for chip, precisions in CHIPS.items():
        for precision in precisions:
            for kernel in ("grid_kernel", "kde_kernel", "renyi2_kernel", "counts_kernel"):
                for config in configs(kernel, chip, precision):
                    itemsize = launch.DTYPES[precision].itemsize
                    assert launch.PADDING % (config.bytes_k // itemsize) == 0
                    assert min(config.block_m, config.block_n) >= 64  # the largest block of `grid`
