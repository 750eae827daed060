"""Which implementation runs on which device. Stand-ins take the place of GPUs that are not here."""

import types
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mikernels import GridStream, engine, memory, mutual_information, triton_impl
from mikernels.engine import choose_implementation, compute_blocks
from mikernels.options import resolve
from pruning.model.device import find_device

CUDA = torch.device("cuda", 0)
GIB = 2**30


@pytest.fixture
def gpu(monkeypatch):
    """Make torch describe a GPU, and switch Triton's interpreter off."""

    def describe(capability=None, architecture=None):
        monkeypatch.setattr(triton_impl.triton.knobs.runtime, "interpret", False)
        monkeypatch.setattr(torch.version, "hip", architecture and "7.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        properties = types.SimpleNamespace(gcnArchName=architecture)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    engine._warn_once.cache_clear()
    yield describe
    engine._warn_once.cache_clear()


def choice(**options):
    return choose_implementation(resolve(options, 64), CUDA)


OLD = [
    ({"capability": (7, 0)}, "expects a GPU of compute capability 8.0 or newer, got 7.0"),
    ({"capability": (7, 5)}, "expects a GPU of compute capability 8.0 or newer, got 7.5"),
    ({"architecture": "gfx90a:sramecc+:xnack-"}, "expects gfx942 from AMD, got gfx90a"),
    ({"architecture": "gfx1100"}, "expects gfx942 from AMD, got gfx1100"),
]


@pytest.mark.parametrize(("properties", "reason"), OLD)
def test_auto_falls_back_with_one_warning(properties, reason, gpu):
    gpu(**properties)
    with pytest.warns(
        UserWarning, match=f"impl: 'auto' takes the slower 'torch' on cuda:0, .*{reason}"
    ) as seen:
        chosen = [choice(), choice(estimator="kde")]
    assert chosen == [("torch", "int8"), ("torch", "fp32")]
    assert len(seen) == 1


@pytest.mark.parametrize(("properties", "reason"), OLD)
def test_triton_by_name_is_an_error_that_names_the_way_out(properties, reason, gpu):
    gpu(**properties)
    with pytest.raises(ValueError, match=f"impl: 'triton' {reason}; use impl='torch' or 'auto'"):
        choice(impl="triton")


@pytest.mark.parametrize(
    ("properties", "chip"),
    [
        ({"capability": (8, 9)}, "sm_80"),
        ({"capability": (9, 0)}, "sm_90"),
        ({"capability": (10, 0)}, "sm_100"),
        ({"capability": (12, 0)}, "sm_80"),
        ({"architecture": "gfx942:sramecc+:xnack-"}, "gfx942"),
    ],
)
def test_other_gpus_run_the_kernels_without_a_warning(properties, chip, gpu):
    gpu(**properties)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice()[0] == "triton"
    assert triton_impl.chip_of(CUDA) == chip


def apple_samples():
    """Samples on a device without float64; a fake tensor needs no such device."""
    with FakeTensorMode():
        return torch.empty(64, 3, device="mps")


@pytest.mark.parametrize("impl", ["auto", "torch", "reference"])
def test_device_without_float64_is_an_error(impl):
    options = resolve({"impl": impl}, 64)
    message = "device: expected one that computes in float64, .* got 'mps.*'; pass device='cpu'"
    with pytest.raises(ValueError, match=message):
        next(compute_blocks(apple_samples(), None, options))
    with pytest.raises(ValueError, match=message):
        GridStream(apple_samples())


def test_option_device_without_float64_is_an_error(monkeypatch):
    x = torch.randn(64, 3)
    empty = torch.empty

    def on_apple(*args, device=None, **keywords):
        return empty(*args, device="cpu" if str(device) == "mps" else device, **keywords)

    monkeypatch.setattr(torch, "empty", on_apple)
    with pytest.raises(ValueError, match=r"device: expected one that computes in float64, .* got 'mps'"):
        mutual_information(x, device="mps")
    with pytest.raises(ValueError, match=r"device: .* got 'mps'.* computes in float64"):
        find_device("mps")


def test_default_budget_counts_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 72 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GIB)
    assert memory.default_budget(CUDA) == 37 * GIB
