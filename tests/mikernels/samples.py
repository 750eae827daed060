"""Test data, the methods to test, and the smallest memory budget of a call."""

import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import mikernels
from mikernels import Pairs


class Method(NamedTuple):
    impl: str
    estimator: str
    transform: str
    precision: str


METHODS = [
    Method("torch", "grid", "rank", "int8"),
    Method("torch", "grid", "rank", "fp32"),
    Method("torch", "grid", "standardize", "fp32"),
    Method("torch", "kde", "rank", "fp32"),
    Method("torch", "kde", "standardize", "fp32"),
    Method("torch", "renyi2", "rank", "fp32"),
    Method("torch", "renyi2", "standardize", "fp32"),
    Method("triton", "grid", "rank", "int8"),
    Method("triton", "grid", "standardize", "fp32"),
    Method("triton", "kde", "rank", "fp16"),
    Method("triton", "renyi2", "standardize", "fp16"),
]
"""Every estimator of both implementations, and every transform of the torch implementation."""

OTHER_KERNELS = [
    Method("triton", "grid", "rank", "fp16"),
    Method("triton", "grid", "rank", "fp8"),
    Method("triton", "grid", "rank", "fp32"),
    Method("triton", "grid", "standardize", "fp16"),
    Method("triton", "kde", "rank", "fp32"),
    Method("triton", "kde", "standardize", "fp16"),
    Method("triton", "renyi2", "rank", "fp32"),
]
"""The remaining transforms and precisions of the kernels, except `kde` and `renyi2` in fp8, because Triton's
interpreter does not round to fp8 as GPUs do."""

GPU = torch.cuda.is_available()


def over_methods(*names: str) -> pytest.MarkDecorator:
    """Parametrize a test by `method`: the `METHODS` that have all of the names."""
    chosen = [method for method in METHODS if set(names) <= set(method)]
    return pytest.mark.parametrize("method", chosen, ids="-".join)


def many_examples(*names: str) -> pytest.MarkDecorator:
    """`over_methods` for tests of many calls: torch only if there is no GPU, since a kernel then takes a second."""
    return over_methods(*names) if GPU else over_methods("torch", *names)


def options(method: Method) -> dict:
    """Keywords of a call; kernels run on a GPU if there is one, and otherwise in Triton's interpreter."""
    return method._asdict() | ({"device": "cuda"} if GPU and method.impl == "triton" else {})


def rounding(method: Method) -> dict:
    """Tolerance in nats for the same operands summed in a different order."""
    return {"rtol": 0, "atol": {"fp16": 5e-5, "fp8": 2e-4}.get(method.precision, 5e-6)}


def mutual_information(*args, **keywords) -> Tensor:
    return torch.as_tensor(mikernels.mutual_information(*args, **keywords)).cpu()


def top_pairs(*args, **keywords) -> Pairs:
    return Pairs(*(t.cpu() for t in mikernels.top_pairs(*args, **keywords)))


def pairs_above(*args, **keywords) -> Pairs:
    return Pairs(*(t.cpu() for t in mikernels.pairs_above(*args, **keywords)))


def gaussian(n_samples: int, n_variables: int, seed: int = 0) -> Tensor:
    """Independent standard normals `[M, N]`."""
    return torch.randn(n_samples, n_variables, generator=torch.Generator().manual_seed(seed))


def correlated(n_samples: int, n_variables: int, seed: int = 0) -> Tensor:
    """Standard normals `[M, N]` with a common factor, whose weight grows from 0 to 0.95 over the columns."""
    weight = torch.linspace(0, 0.95, n_variables)
    noise = gaussian(n_samples, n_variables, seed) * (1 - weight.square()).sqrt()
    return noise + weight * gaussian(n_samples, 1, seed + 1)


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def column_pairs(x: Tensor, y: Tensor, **keywords) -> Tensor:
    """Mutual information `[N]` of each column of x with the same column of y, without the other pairs."""
    pairs = zip(x.split(1, dim=1), y.split(1, dim=1), strict=True)
    return torch.cat([mutual_information(*pair, **keywords).flatten() for pair in pairs])


def smallest_budget(x: Tensor, y: Tensor | None = None, **keywords) -> int:
    """Bytes that a call needs at least, from its error message for a budget of 0."""
    with pytest.raises(ValueError, match="memory_budget: expected at least") as error:
        mutual_information(x, y, memory_budget=0, **keywords)
    return int(re.search(r"at least (\d+) bytes", str(error.value))[1])
