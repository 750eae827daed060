"""`top_pairs` and `pairs_above` against the sorted entries of the matrix, to the bit."""

import functools

import pytest
import torch

import mikernels
from mikernels import bits, null_distribution
from mikernels.networks import clr

from samples import (
    correlated,
    gaussian,
    many_examples,
    mutual_information,
    options,
    over_methods,
    pairs_above,
    smallest_budget,
    top_pairs,
)

with_and_without_y = pytest.mark.parametrize("n_left", [None, 20], ids=["x", "x and y"])


def inputs(n_left, n_variables=40):
    both = correlated(20, n_variables)
    return (both, None) if n_left is None else both.split([n_left, n_variables - n_left], dim=1)


def by_hand(x, y, **keywords):
    """Every pair as `(nats, first, second)`, the best first and equal values by index."""
    mi = mutual_information(x, y, **keywords).tolist()
    pairs = [(v, i, j) for i, row in enumerate(mi) for j, v in enumerate(row) if y is not None or i < j]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))


@functools.cache
def expected_pairs(method, n_left):
    """`by_hand` of the usual `inputs`, for tests with `small_tiles`: a kernel takes seconds for a matrix."""
    x, y = inputs(n_left)
    return by_hand(x, y, **options(method))


def listed(pairs):
    assert pairs.first.dtype == pairs.second.dtype == torch.int64
    assert pairs.mi.dtype == torch.float32
    return list(zip(pairs.mi.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True))


@over_methods()
@with_and_without_y
def test_top_pairs_are_the_highest_entries_of_the_matrix(method, n_left, small_tiles):
    x, y = inputs(n_left)
    assert listed(top_pairs(x, 37, y, **options(method))) == expected_pairs(method, n_left)[:37]


@many_examples()
@with_and_without_y
@pytest.mark.parametrize("k", [1, 10_000])
def test_any_number_of_pairs_is_found(method, n_left, k, small_tiles):
    x, y = inputs(n_left)
    assert listed(top_pairs(x, k, y, **options(method))) == expected_pairs(method, n_left)[:k]


@over_methods()
@with_and_without_y
def test_pairs_above_are_the_entries_beyond_the_threshold(method, n_left, small_tiles):
    x, y = inputs(n_left)
    expected = expected_pairs(method, n_left)
    threshold = expected[50][0]
    above = [pair for pair in expected if pair[0] > threshold]
    assert len(above) == 50
    assert listed(pairs_above(x, threshold, y, **options(method))) == above


@many_examples()
@with_and_without_y
def test_smallest_memory_budget_finds_the_same_pairs(method, n_left):
    x, y = inputs(n_left and 6, n_variables=13)  # a tile for each pair
    keywords = options(method)
    keywords["memory_budget"] = smallest_budget(x, y, **keywords)
    expected = by_hand(x, y, **keywords)
    assert listed(top_pairs(x, 37, y, **keywords)) == expected[:37]
    assert listed(pairs_above(x, float("-inf"), y, **keywords)) == expected


def test_equal_values_come_in_order_of_their_indices(small_tiles):
    x = gaussian(40, 3)[:, [0, 1, 2, 0, 1, 2] * 12]
    keywords = {"nodes": 64}
    expected = by_hand(x, None, **keywords)
    n_tied = sum(pair[0] == expected[0][0] for pair in expected)
    for k in (5, n_tied - 1, n_tied + 1):
        assert listed(top_pairs(x, k, **keywords)) == expected[:k]


@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2"])
def test_reference_implementation_lists_pairs_too(estimator):
    x, y = inputs(20)
    keywords = {"estimator": estimator, "impl": "reference"}
    expected = by_hand(x, y, **keywords)
    assert listed(top_pairs(x, 9, y, **keywords)) == expected[:9]
    assert listed(pairs_above(x, expected[9][0], y, **keywords)) == expected[:9]


@with_and_without_y
def test_threshold_above_everything_finds_nothing(n_left):
    x, y = inputs(n_left)
    assert listed(pairs_above(x, 100.0, y)) == []


def test_pairs_of_constant_neurons_have_zero():
    x = gaussian(40, 3)
    x[:, :2] = 1.0
    assert listed(top_pairs(x, 3)) == [(0, 0, 1), (0, 0, 2), (0, 1, 2)]
    assert listed(pairs_above(x, 0.0)) == []


@over_methods()
def test_values_are_float32_whatever_the_default_dtype(method, monkeypatch):
    x = correlated(40, 4)
    expected = by_hand(x, None, **options(method))
    torch.set_default_dtype(torch.float64)
    try:
        pairs = top_pairs(x, 6, **options(method))
    finally:
        torch.set_default_dtype(torch.float32)
    assert listed(pairs) == expected


def test_pairs_are_not_read_as_a_matrix():
    """Their first and second are columns: p-values, bits or scores of these mean nothing."""
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    null = null_distribution(64, draws=30)
    pandas = pytest.importorskip("pandas")
    for made in (x, x.numpy(), pandas.DataFrame(x.numpy())):
        pairs = mikernels.top_pairs(made, 3)
        for function in (null.p_value, bits, clr):
            with pytest.raises(TypeError, match="expected an array of numbers of one kind, got pairs"):
                function(pairs)
        assert null.p_value(pairs.mi).shape == (3,)
