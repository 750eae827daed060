"""Autotuning: what it times, when, and what a launch then uses. A stand-in takes the place of kernels and of time."""

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from mikernels import clear_caches
from mikernels.triton_impl import launch
from mikernels.triton_impl.configs import configs

from samples import GPU, correlated, mutual_information


class RecordingKernel:
    """Stands in for a kernel: it computes nothing and keeps the arguments of its launches."""

    def __init__(self, name):
        self.__name__ = name
        self.launches = []

    def __getitem__(self, grid):
        return lambda *args, **keywords: self.launches.append((args, keywords))


@pytest.fixture(autouse=True)
def timings(monkeypatch):
    """Configurations in the order in which they are timed; the last of each kind is the fastest."""
    timed = []

    def milliseconds(launch, config, out):
        launch(config, out)
        timed.append(config)
        return 1 / len(timed)

    monkeypatch.setattr(launch, "milliseconds", milliseconds)
    clear_caches()
    yield timed
    clear_caches()


def run(kernel, *, chip="sm_90", precision="fp16", n_rows=300, n_inner=256, adds=True, **constants):
    dtype = launch.DTYPES[precision]
    a, b = torch.zeros(n_rows, n_inner, dtype=dtype), torch.zeros(70, n_inner, dtype=dtype)
    out = torch.zeros(n_rows, 72)
    launcher = launch.Launcher(chip, precision, autotune=True)
    launcher.run_tiles(kernel, a, b, out, n_rows, 70, 72, n_inner, adds=adds, UPPER=False, **constants)
    return out


def blocks(keywords):
    return keywords["BM"], keywords["BN"], keywords["num_warps"], keywords["num_stages"]


def memory(argument):
    """Where the data of a tensor or of a descriptor lies."""
    return (argument.base if isinstance(argument, TensorDescriptor) else argument).data_ptr()


@pytest.mark.parametrize("name", ["kde_kernel", "renyi2_kernel"])
@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100"])
def test_timing_leaves_the_sums_alone_and_the_fastest_adds_to_them_once(name, chip, timings):
    kernel = RecordingKernel(name)
    out = run(kernel, chip=chip)
    candidates = configs(name, chip, "fp16")
    assert timings == candidates
    assert len(kernel.launches) == len(candidates) + 1
    to_out = [memory(args[2]) == out.data_ptr() for args, _ in kernel.launches]
    assert to_out == [False] * len(candidates) + [True]
    last = candidates[-1]
    assert blocks(kernel.launches[-1][1]) == (last.block_m, last.block_n, last.warps, last.stages)


def test_descriptors_have_the_blocks_of_the_configuration():
    kernel = RecordingKernel("renyi2_kernel")
    run(kernel, chip="sm_90")
    for (a, b, out, *_), keywords in kernel.launches:
        m, n, k = (keywords[name] for name in ("BM", "BN", "BK"))
        assert [t.block_shape for t in (a, b, out)] == [[m, k], [n, k], [m, n // 2]]


def test_kernels_that_overwrite_their_result_are_timed_on_it():
    kernel = RecordingKernel("grid_kernel")
    out = run(kernel, adds=False, S=16)
    assert {memory(args[2]) for args, _ in kernel.launches} == {out.data_ptr()}


def test_each_kind_is_timed_once(timings):
    kernel = RecordingKernel("grid_kernel")
    n = len(configs("grid_kernel", "sm_90", "fp16"))
    run(kernel, adds=False, S=16)
    run(kernel, adds=False, S=16, n_rows=290)  # the same size to a power of two
    assert len(timings) == n
    others = [{"n_rows": 3000}, {"n_inner": 1024}, {"S": 32}, {"precision": "int8"}]
    for count, other in enumerate(others, start=2):
        run(kernel, **({"adds": False, "S": 16} | other))
        assert len(timings) == count * n
    clear_caches()
    run(kernel, adds=False, S=16)
    assert len(timings) == (len(others) + 2) * n


@pytest.mark.skipif(GPU, reason="a GPU has its own configurations")
@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2", "adaptive"])
def test_autotuned_estimates_are_right(estimator, monkeypatch, timings):
    """The second configuration has the smaller tiles, which the interpreter runs as well."""
    x = correlated(20, 5)
    expected = mutual_information(x, estimator=estimator, impl="triton")
    original = launch.configs

    def two(*args):
        (config,) = original(*args)
        return [config, config._replace(block_m=64, block_n=64)]

    monkeypatch.setattr(launch, "configs", two)
    mi = mutual_information(x, estimator=estimator, impl="triton", autotune=True)
    torch.testing.assert_close(mi, expected, rtol=0, atol=5e-5)
    assert len(timings) >= 2
