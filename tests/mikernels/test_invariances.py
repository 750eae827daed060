"""Changes of the input or of the computation that must not change the result, or not beyond rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mikernels import transforms as transforms_module

from samples import (
    correlated,
    gaussian,
    many_examples,
    mutual_information,
    options,
    over_methods,
    rounding,
    smallest_budget,
)

few_examples = settings(max_examples=10, deadline=None, derandomize=True)


@many_examples()
@given(shape=st.tuples(st.integers(8, 40), st.integers(2, 9)), seed=st.integers(0, 2**16))
@few_examples
def test_matrix_is_symmetric_to_the_bit_and_highest_on_the_diagonal(method, shape, seed):
    mi = mutual_information(gaussian(*shape, seed=seed), **options(method))
    assert mi.shape == (shape[1], shape[1])
    assert mi.dtype == torch.float32
    assert torch.equal(mi, mi.T)
    if method.transform == "rank":
        assert (mi <= mi.diag() + 2 * rounding(method)["atol"]).all()


@over_methods("triton")
def test_kernels_follow_permuted_variables_and_ignore_the_order_of_samples(method):
    x = correlated(17, 6)
    mi = mutual_information(x, **options(method))
    assert torch.equal(mi, mi.T)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = mutual_information(x.flip(0)[:, order], **options(method))
    torch.testing.assert_close(permuted, mi[order][:, order], **rounding(method))


@over_methods("triton")
def test_kernels_ignore_maps_that_the_transform_removes(method):
    x = correlated(17, 4)
    mapped = x.exp() if method.transform == "rank" else 4 * x - 8
    mi, of_mapped = (mutual_information(data, **options(method)) for data in (x, mapped))
    torch.testing.assert_close(of_mapped, mi, **rounding(method))


@many_examples()
@given(order=st.permutations(range(7)))
@few_examples
def test_permuted_variables_permute_the_matrix(method, order):
    x = correlated(40, 7)
    mi = mutual_information(x, **options(method))
    permuted = mutual_information(x[:, order], **options(method))
    torch.testing.assert_close(permuted, mi[order][:, order], **rounding(method))


@many_examples()
@given(order=st.permutations(range(40)))
@few_examples
def test_jointly_permuted_samples_change_nothing(method, order):
    x = correlated(40, 5)
    mi, permuted = (mutual_information(data, **options(method)) for data in (x, x[order]))
    if method.precision == "int8":
        assert torch.equal(permuted, mi)
    else:
        torch.testing.assert_close(permuted, mi, **rounding(method))


@many_examples("rank")
@given(steps=st.lists(st.lists(st.floats(1e-3, 1e3), min_size=20, max_size=20), min_size=4, max_size=4))
@few_examples
def test_increasing_maps_of_each_variable_change_nothing_under_ranks(method, steps):
    ranks = correlated(20, 4).argsort(dim=0).argsort(dim=0)
    mapped = torch.tensor(steps, dtype=torch.float64).cumsum(dim=1).T.gather(0, ranks)
    by_rank, by_map = (mutual_information(data, **options(method)) for data in (ranks.double(), mapped))
    assert torch.equal(by_map, by_rank)


@many_examples("rank")
@pytest.mark.parametrize("function", [torch.exp, torch.sinh, torch.sigmoid, lambda v: 1e30 * v - 7e29])
def test_common_monotone_functions_change_nothing_under_ranks(method, function):
    x = correlated(40, 6).double()
    mi, mapped = (mutual_information(data, **options(method)) for data in (x, function(x)))
    assert torch.equal(mapped, mi)


@many_examples("standardize")
@given(
    scale=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4),
    shift=st.lists(st.floats(-10, 10), min_size=4, max_size=4),
)
@few_examples
def test_location_and_scale_change_nothing_under_standardize(method, scale, shift):
    x = correlated(40, 4).double()
    moved = torch.tensor(scale) * (x + torch.tensor(shift))
    mi, of_moved = (mutual_information(data, **options(method)) for data in (x, moved))
    torch.testing.assert_close(of_moved, mi, **rounding(method))


@pytest.mark.parametrize("scale", [1e-200, 1e307])
@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2"])
def test_no_scale_of_float64_is_too_small_or_large_to_standardize(estimator, scale):
    x = correlated(60, 3).double()
    mi, scaled = (
        mutual_information(data, transform="standardize", estimator=estimator) for data in (x, scale * x)
    )
    torch.testing.assert_close(scaled, mi, rtol=0, atol=5e-6)


@over_methods()
def test_sign_of_a_variable_matters_no_more_than_the_rounding_of_shares(method):
    x = correlated(17, 6)
    mi, mirrored = (mutual_information(data, **options(method)) for data in (x, -x))
    atol = {"int8": 5e-3, "fp8": 1e-2}.get(method.precision, rounding(method)["atol"])
    torch.testing.assert_close(mirrored, mi, rtol=0, atol=atol)


@many_examples()
def test_memory_budget_changes_nothing(method, small_tiles):
    keywords = options(method)
    x, y = correlated(20, 50).split([29, 21], dim=1)
    for data in [(x, None), (x, y)]:
        roomy = mutual_information(*data, **keywords)
        tight = mutual_information(*data, memory_budget=smallest_budget(*data, **keywords), **keywords)
        if method.precision == "int8" or method.impl == "triton":
            assert torch.equal(tight, roomy)
        else:
            torch.testing.assert_close(tight, roomy, **rounding(method))


@pytest.mark.parametrize("transform", ["rank", "standardize"])
def test_transforming_a_few_columns_at_a_time_changes_nothing(transform, monkeypatch):
    x = correlated(40, 9).relu()
    at_once = mutual_information(x, transform=transform)
    monkeypatch.setattr(transforms_module, "CPU_CHUNK_BYTES", 2 * 8 * 40)
    assert torch.equal(mutual_information(x, transform=transform), at_once)


@over_methods()
def test_two_inputs_are_a_block_of_the_matrix_of_both(method):
    both = correlated(17, 7)
    x, y = both.split([3, 4], dim=1)
    block = mutual_information(both, **options(method))[:3, 3:]
    torch.testing.assert_close(mutual_information(x, y, **options(method)), block, **rounding(method))
    torch.testing.assert_close(mutual_information(y, x, **options(method)), block.T, **rounding(method))


@over_methods()
def test_repeated_calls_give_the_same_bits(method):
    x = correlated(17, 6).relu()
    assert torch.equal(mutual_information(x, **options(method)), mutual_information(x, **options(method)))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@over_methods("torch")
def test_number_of_threads_changes_nothing(method, threads):
    x = correlated(200, 40).relu()
    threads(1)
    with_one = mutual_information(x, **options(method))
    threads(2)
    with_two = mutual_information(x, **options(method))
    if method.precision == "int8":
        assert torch.equal(with_two, with_one)
    else:
        torch.testing.assert_close(with_two, with_one, **rounding(method))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@many_examples()
def test_floating_point_type_of_the_input_changes_nothing(method, dtype):
    x = correlated(40, 4).bfloat16().clamp(min=2**-14)  # exact in all of them
    mi = mutual_information(x.to(dtype), **options(method))
    torch.testing.assert_close(mi, mutual_information(x.double(), **options(method)), **rounding(method))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_numpy_types_are_accepted(dtype):
    x = correlated(50, 4).numpy().astype(dtype)
    mi = mutual_information(x)
    assert torch.equal(mi, mutual_information(torch.from_numpy(x.astype("f8"))))


def read_only(x):
    x.flags.writeable = False
    return x


@pytest.mark.filterwarnings("error")  # torch warns of read-only arrays
@pytest.mark.parametrize(
    "laid_out",
    [
        read_only,
        np.asfortranarray,
        lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    ],
    ids=["read-only", "Fortran", "negative strides", "strided"],
)
def test_numpy_memory_layout_changes_nothing(laid_out):
    x = correlated(50, 4).numpy()
    values = x.copy()
    expected = mutual_information(values)
    assert torch.equal(mutual_information(laid_out(x)), expected)
    assert np.array_equal(x, values)


@many_examples()
def test_torch_memory_layout_and_gradients_change_nothing(method):
    x = correlated(50, 4)
    expected = mutual_information(x, **options(method))
    for same in (x.T.contiguous().T, x.repeat_interleave(2, dim=0)[::2], x.clone().requires_grad_()):
        mi = mutual_information(same, **options(method))
        assert torch.equal(mi, expected)
        assert not mi.requires_grad


def test_inputs_are_not_modified():
    x, y = correlated(50, 8).relu().split(4, dim=1)
    copies = x.clone(), y.clone()
    for transform in ("rank", "standardize"):
        mutual_information(x, y, transform=transform)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
