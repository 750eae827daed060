"""The logarithm of GPUs, which the interpreter replaces by an exact one: results with the error that it may have."""

import math

import pytest
import torch
import triton
import triton.language as tl

from mikernels import triton_impl
from mikernels.options import make_problem
from mikernels.triton_impl.kde import Kde
from mikernels.triton_impl.launch import Launcher

from samples import GPU, METHODS, Method, correlated, mutual_information, options

pytestmark = [
    pytest.mark.skipif(GPU, reason="GPUs have the instruction itself"),
    pytest.mark.filterwarnings("ignore:divide by zero"),  # log2(0) in padding that is never stored
    pytest.mark.filterwarnings("ignore:invalid value"),
]


@triton.jit
def too_large(x, CHIP: tl.constexpr):
    """The largest values that the PTX ISA allows `lg2.approx.ftz.f32` to return."""
    exact = tl.log2(tl.where(x < 2.0**-126, 0.0, x))
    return exact + tl.where((x > 0.5) & (x < 2), 2.0**-22, tl.abs(exact) * 2.0**-22.6)


@triton.jit
def too_small(x, CHIP: tl.constexpr):
    exact = tl.log2(tl.where(x < 2.0**-126, 0.0, x))
    return exact - tl.where((x > 0.5) & (x < 2), 2.0**-22, tl.abs(exact) * 2.0**-22.6)


@pytest.fixture(params=[too_large, too_small], ids=["too large", "too small"])
def log2_of_a_gpu(request, monkeypatch):
    """A function that puts an inexact logarithm in place of the exact one."""

    def replace():
        for module in (triton_impl.grid, triton_impl.kde, triton_impl.adaptive_kernels):
            monkeypatch.setattr(module, "log2", request.param)

    return replace


KERNELS = [m for m in METHODS if m.impl == "triton" and m.estimator in ("grid", "kde")]
ADAPTIVE = Method("triton", "adaptive", "rank", "int8")


@pytest.mark.parametrize("method", [*KERNELS, ADAPTIVE], ids="-".join)
def test_errors_of_the_instruction_move_results_by_less_than_a_millionth_of_a_nat(method, log2_of_a_gpu):
    x = correlated(17 if method.estimator == "kde" else 131, 3)
    x = torch.cat([x, x[:, :1]], dim=1)  # the last pair has the largest possible value
    expected = mutual_information(x, **options(method))
    log2_of_a_gpu()
    difference = (mutual_information(x, **options(method)) - expected).abs().max()
    assert 0 < difference < 1e-6


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
@pytest.mark.parametrize("n_samples", [8, 128, 1000, 4096, 32_768, 65_536, 200_000])
def test_products_before_a_logarithm_cannot_leave_the_range_of_float32(n_samples, precision):
    """Ratios are between 1 / M and M; a scaled sum times its share of the factor is a ratio."""
    kde = Kde(make_problem("kde", 16, None, n_samples), Launcher("sm_90", precision, autotune=False))
    samples = kde._samples_per_log(n_samples)
    factor = n_samples / kde._scale(n_samples) ** 2
    assert min(n_samples**-1.0, factor) ** samples > 2.0**-126
    assert float(n_samples) ** samples < 2.0**127
    assert samples >= 6


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp8"])
def test_kde_of_samples_far_apart_takes_the_largest_ratios(precision):
    """Outliers in every sample: each is alone in its kernel, so every ratio is M and the MI is log M."""
    n_samples = 100
    x = (torch.arange(n_samples)[:, None] * torch.tensor([1.0, -1.0])).double()
    mi = mutual_information(
        x, estimator="kde", transform="standardize", bandwidth=1e-4, impl="triton", precision=precision
    )
    torch.testing.assert_close(mi[0, 1], torch.tensor(math.log(n_samples)), rtol=0, atol=1e-4)
