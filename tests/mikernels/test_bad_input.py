"""Every refusal, with a message that says what was expected and what came."""

import re

import numpy as np
import pytest
import torch

from samples import (
    correlated,
    gaussian,
    mutual_information,
    options,
    over_methods,
    pairs_above,
    smallest_budget,
    top_pairs,
)

NAN, INF = float("nan"), float("inf")


def with_values(*values):
    """`[20, 5]` with `values` in rows from the first on, in columns from 2 on."""
    x = gaussian(20, 5)
    for place, value in enumerate(values):
        x[place, 2 + place] = value
    return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ((NAN,), "1 NaN and 0 infinite in 1 of 5 columns (the first is column 2)"),
        ((INF,), "0 NaN and 1 infinite in 1 of 5 columns (the first is column 2)"),
        ((-INF, INF), "0 NaN and 2 infinite in 2 of 5 columns (the first is column 2)"),
        ((NAN, INF), "1 NaN and 1 infinite in 2 of 5 columns (the first is column 2)"),
    ],
)
def test_values_that_are_not_finite(values, counts, dtype):
    with pytest.raises(ValueError, match=re.escape(f"x: expected finite values, got {counts}")):
        mutual_information(with_values(*values).to(dtype))


def test_values_of_y_that_are_not_finite():
    with pytest.raises(ValueError, match="y: expected finite values, got 1 NaN"):
        mutual_information(gaussian(20, 2), with_values(NAN))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_values_whose_sum_overflows_are_accepted(dtype):
    largest = torch.finfo(dtype).max
    x = (gaussian(20, 3).double().sigmoid() * largest).to(dtype).clamp(min=largest / 2)
    assert torch.isinf(x.sum())
    assert mutual_information(x).isfinite().all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (gaussian(7, 3), None, "x: expected at least 8 samples (rows), got 7"),
        (gaussian(0, 3), None, "x: expected at least 8 samples (rows), got 0"),
        (gaussian(20, 1), None, "x: expected at least 2 variables (columns) to pair, got shape [20, 1]"),
        (gaussian(20, 0), None, "x: expected at least one variable (column), got shape [20, 0]"),
        (gaussian(20, 2), gaussian(20, 0), "y: expected at least one variable (column), got shape [20, 0]"),
        (gaussian(20, 2), gaussian(19, 2), "y: expected as many samples as in x (20), got 19"),
        (gaussian(20, 2), gaussian(7, 2), "y: expected at least 8 samples (rows), got 7"),
        (gaussian(20, 2)[0], None, "x: expected at least 8 samples (rows), got 2"),
        (
            gaussian(20, 2)[:, 0],
            None,
            "x: expected at least 2 variables (columns) to pair, got shape [20, 1]",
        ),
        (gaussian(20, 2)[None], None, "x: expected shape [samples, variables], got 3 dimensions: [1, 20, 2]"),
        (np.array(1.0), None, "x: expected shape [samples, variables], got 0 dimensions: []"),
    ],
)
def test_shapes(x, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mutual_information(x, y)


def test_complex_tensors():
    with pytest.raises(TypeError, match=r"x: expected real numbers, got a tensor of torch.complex64"):
        mutual_information(torch.ones(20, 2, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", ["complex64", "object", "longdouble", "<U3"])
def test_numpy_types_that_are_not_supported(dtype):
    x = np.ones((20, 2), dtype=dtype)
    with pytest.raises(TypeError, match=f"x: expected real numbers .* got an array of {x.dtype}"):
        mutual_information(x)


@pytest.mark.parametrize("value", [None, 3.0, "x", {}, {1.0, 2.0}])
def test_what_is_no_array(value):
    expected = "expected a torch tensor, an array or a list of rows, got"
    with pytest.raises(TypeError, match=f"x: {expected} {type(value).__name__}"):
        mutual_information(value)
    if value is not None:
        with pytest.raises(TypeError, match=f"y: {expected} {type(value).__name__}"):
            mutual_information(gaussian(20, 2), value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"estimator": "knn"}, "estimator: expected one of 'grid', 'kde', 'renyi2', 'adaptive', got 'knn'"),
        ({"transform": "none"}, "transform: expected one of 'rank', 'standardize', got 'none'"),
        ({"impl": "numpy"}, "impl: expected one of 'auto', 'triton', 'torch', 'reference'"),
        ({"precision": "fp4"}, "precision: expected one of 'auto', 'int8', 'fp8', 'fp16', .*, got 'fp4'"),
        (
            {"precision": "fp16"},
            "precision: expected one of 'int8', 'fp32' .* impl='torch' on cpu, got 'fp16'",
        ),
        (
            {"precision": "fp64"},
            "'fp32' for 'grid' with transform='rank' and impl='torch' on cpu, got 'fp64'",
        ),
        (
            {"precision": "int8", "transform": "standardize"},
            "expected one of 'fp32' for 'grid' with transform='standardize' .* got 'int8'",
        ),
        (
            {"precision": "int8", "estimator": "kde"},
            "precision: expected one of 'fp32' for 'kde' with .* got 'int8'",
        ),
        ({"precision": "int8", "estimator": "renyi2"}, "precision: expected one of 'fp32' for 'renyi2' with"),
        (
            {"precision": "fp32", "impl": "reference"},
            "expected one of 'fp64' .* impl='reference' on cpu, got 'fp32'",
        ),
        ({"nodes": 1}, "nodes: expected an integer from 2 to 256, got 1"),
        ({"nodes": 257}, "nodes: expected an integer from 2 to 256, got 257"),
        ({"nodes": 16.0}, "nodes: expected an integer from 2 to 256, got 16.0"),
        ({"nodes": True}, "nodes: expected an integer from 2 to 256, got True"),
        ({"bandwidth": 0}, "bandwidth: expected None, 'silverman', 'scott' or a number .* got 0"),
        ({"bandwidth": -0.5}, "bandwidth: .* got -0.5"),
        ({"bandwidth": NAN}, "bandwidth: .* got nan"),
        ({"bandwidth": INF}, "bandwidth: .* got inf"),
        ({"bandwidth": "botev"}, "bandwidth: .* got 'botev'"),
    ],
)
def test_options(option, message):
    x = gaussian(20, 2)
    calls = [
        lambda: mutual_information(x, **option),
        lambda: top_pairs(x, 1, **option),
        lambda: pairs_above(x, 0.0, **option),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("bandwidth", [1e-30, 1e-200])
@over_methods()
def test_tiny_bandwidth_is_refused_or_gives_numbers(method, bandwidth):
    try:
        mi = mutual_information(gaussian(20, 3), bandwidth=bandwidth, **options(method))
    except ValueError as error:
        assert "bandwidth: expected" in str(error)  # noqa: PT017
    else:
        assert mi.isfinite().all()


@pytest.mark.parametrize("k", [0, -1])
def test_number_of_pairs(k):
    with pytest.raises(ValueError, match=f"k: expected at least 1, got {k}"):
        top_pairs(gaussian(20, 2), k)


def test_threshold_that_is_no_number():
    with pytest.raises(ValueError, match="threshold: expected a number of nats, got nan"):
        pairs_above(gaussian(20, 2), NAN)


@pytest.mark.parametrize("function", [top_pairs, pairs_above])
def test_unknown_keyword_is_named_beside_those_that_exist(function):
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'node'; expected options among .*nodes"
    ):
        function(gaussian(20, 2), 1, node=16)


@pytest.mark.parametrize("with_y", [False, True])
@over_methods()
def test_memory_budget_that_the_error_names_is_the_smallest_that_works(method, with_y):
    x, y = correlated(20, 5).split([2, 3], dim=1)
    y = y if with_y else None
    needed = smallest_budget(x, y, **options(method))
    assert mutual_information(x, y, memory_budget=needed, **options(method)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {needed} bytes for this input, got {needed - 1}"):
        mutual_information(x, y, memory_budget=needed - 1, **options(method))
