"""Both implementations against the float64 reference, in nats."""

import pytest
import torch

from samples import (
    OTHER_KERNELS,
    correlated,
    gaussian,
    many_examples,
    mutual_information,
    options,
    over_methods,
)


def student_t(x):
    return x / gaussian(len(x), 2, seed=7).norm(dim=1, keepdim=True)


def with_duplicates(x):
    return torch.cat([x[:, :1], x[:, :-1]], dim=1)


def with_constants(x):
    return torch.cat([torch.full_like(x[:, :1], 3.0), x[:, 1:]], dim=1)


KINDS = {
    "gaussian": lambda x: x,
    "cubed": lambda x: x**3,
    "student_t": student_t,
    "relu": torch.relu,
    "five_levels": lambda x: x.round().clamp(-2, 2),
    "bfloat16": torch.Tensor.bfloat16,
    "duplicates": with_duplicates,
    "constants": with_constants,
}


def budget(precision, n_samples):
    """Tolerated error in nats of rounding, or of shares in 8 bits (measured: 0.3 to 0.9 of this)."""
    by_rounding = {"fp32": 0.0, "fp16": 6e-4, "int8": 0.02, "fp8": 0.04}[precision] / n_samples**0.5
    return max(by_rounding, 1e-4 if precision == "fp16" else 1e-5)


def assert_close_to_reference(x, y=None, *, precision, impl="auto", device=None, **keywords):
    mi = mutual_information(x, y, precision=precision, impl=impl, device=device, **keywords)
    expected = mutual_information(x, y, impl="reference", **keywords)
    torch.testing.assert_close(mi, expected, rtol=0, atol=budget(precision, len(x)))
    return mi


# Kernels work on 64 or 128 variables and 128 samples at a time, and on 16 rows of `kde` and `renyi2`.
@pytest.mark.parametrize("shape", [(8, 2), (9, 3), (17, 70), (131, 2)])
@over_methods()
def test_any_shape_is_close_to_the_reference(method, shape):
    assert_close_to_reference(correlated(*shape), **options(method))


@pytest.mark.parametrize("shape", [(9, 130), (37, 70), (257, 5)])
@over_methods("torch")
def test_larger_shapes_are_close_to_the_reference(method, shape):
    assert_close_to_reference(correlated(*shape), **options(method))


@pytest.mark.parametrize("method", OTHER_KERNELS, ids="-".join)
def test_other_precisions_of_kernels_are_close_to_the_reference(method):
    x = correlated(131 if method.estimator == "grid" else 17, 67)
    assert_close_to_reference(x[:, 64:], **options(method))
    assert_close_to_reference(x[:, :1], x[:, 1:], **options(method))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_samples", [9, 37, 257])
@over_methods("torch")
def test_any_kind_of_data_is_close_to_the_reference(method, n_samples, kind):
    assert_close_to_reference(KINDS[kind](correlated(n_samples, 5)), **options(method))


@over_methods("triton")
def test_all_kinds_of_data_at_once_are_close_to_the_reference(method):
    x = correlated(17, 2)
    assert_close_to_reference(
        torch.cat([kind(x).float() for kind in KINDS.values()], dim=1), **options(method)
    )


@pytest.mark.parametrize("kind", KINDS)
@many_examples()
def test_any_kind_of_two_inputs_is_close_to_the_reference(method, kind):
    x, y = KINDS[kind](correlated(37, 7)).split([3, 4], dim=1)
    assert_close_to_reference(x, y, **options(method))


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 5)])
@over_methods()
def test_any_shape_of_two_inputs_is_close_to_the_reference(method, shape):
    x, y = correlated(9, sum(shape)).split(shape, dim=1)
    assert_close_to_reference(x, y, **options(method))


@pytest.mark.parametrize("nodes", [2, 7, 16, 33, 256])
@pytest.mark.parametrize("n_samples", [8, 37])
@over_methods("grid")
def test_any_number_of_nodes_is_close_to_the_reference(method, n_samples, nodes):
    n_variables = 6 if nodes < 100 else 2
    assert_close_to_reference(correlated(n_samples, n_variables), nodes=nodes, **options(method))


@pytest.mark.parametrize("bandwidth", ["silverman", 0.05, 3.0])
@over_methods()
def test_any_bandwidth_is_close_to_the_reference(method, bandwidth):
    n_samples = 257 if method.estimator == "grid" else 17  # 8 bits need many samples at 0.05
    assert_close_to_reference(correlated(n_samples, 4), bandwidth=bandwidth, **options(method))


@over_methods()
def test_ragged_tiles_are_symmetric_to_the_bit_and_close_to_the_reference(method, small_tiles):
    x, y = correlated(9, 40).split([33, 7], dim=1)
    mi = assert_close_to_reference(x, **options(method))
    assert torch.equal(mi, mi.T)
    assert_close_to_reference(x, y, **options(method))


@pytest.mark.parametrize("n_samples", [257, 1024, 4096])
def test_int8_error_shrinks_with_the_number_of_samples(n_samples):
    strength = torch.linspace(0, 3, 24)
    x = gaussian(n_samples, 1)
    y = strength * x + 0.1 * gaussian(n_samples, 24, seed=1)
    assert_close_to_reference(torch.cat([x, y, x**2], dim=1), precision="int8")


def test_int8_keeps_the_order_of_pairs():
    own = gaussian(1024, 80) @ gaussian(80, 80, seed=1)
    common = gaussian(1024, 12, seed=2) @ gaussian(12, 80, seed=3)
    x = torch.relu(own + 6 * common)
    above = torch.triu_indices(80, 80, offset=1).unbind()
    pairs = [mutual_information(x, impl=impl)[above] for impl in ("torch", "reference")]
    ranks = torch.stack([p.argsort().argsort().double() for p in pairs])
    assert torch.corrcoef(ranks)[0, 1] > 0.999


@over_methods()
def test_autocast_does_not_lower_the_precision(method):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close_to_reference(correlated(17, 6), **options(method))


def test_auto_precision_is_int8_for_ranked_grid_and_fp32_otherwise():
    x = correlated(64, 4)
    for automatic, explicit in [
        ({}, {"precision": "int8"}),
        ({"transform": "standardize"}, {"precision": "fp32"}),
        ({"estimator": "kde"}, {"precision": "fp32"}),
        ({"impl": "reference"}, {"precision": "fp64"}),
    ]:
        assert torch.equal(mutual_information(x, **automatic), mutual_information(x, **automatic, **explicit))
