"""Test data, and the smallest memory budget that a call works in."""

import re

import pytest
import torch
from torch import Tensor

from mikernels import mutual_information

METHODS = [
    ("grid", "rank", "int8"),
    ("grid", "rank", "fp32"),
    ("grid", "standardize", "fp32"),
    ("kde", "rank", "fp32"),
    ("kde", "standardize", "fp32"),
    ("renyi2", "rank", "fp32"),
    ("renyi2", "standardize", "fp32"),
]
"""Every estimator, transform and precision of the torch implementation."""


def over_methods(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test by `method`: those of `METHODS` that have all of the names."""
    chosen = [method for method in METHODS if set(names) <= set(method)]
    return pytest.mark.parametrize("method", chosen, ids="-".join)


def options(method: tuple[str, str, str]) -> dict:
    return dict(zip(("estimator", "transform", "precision"), method, strict=True))


def gaussian(n_samples: int, n_variables: int, seed: int = 0) -> Tensor:
    """Independent standard normals `[M, N]`."""
    return torch.randn(n_samples, n_variables, generator=torch.Generator().manual_seed(seed))


def correlated(n_samples: int, n_variables: int, seed: int = 0) -> Tensor:
    """Standard normals `[M, N]` that share a factor: correlated by 0 (column 0) up to 0.9 (the last)."""
    weight = torch.linspace(0, 0.95, n_variables)
    noise = gaussian(n_samples, n_variables, seed) * (1 - weight.square()).sqrt()
    return noise + weight * gaussian(n_samples, 1, seed + 1)


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def smallest_budget(x: Tensor, y: Tensor | None = None, **keywords) -> int:
    """Bytes that the error for an impossible budget says are needed."""
    with pytest.raises(ValueError, match="memory_budget: expected at least") as error:
        mutual_information(x, y, memory_budget=0, **keywords)
    return int(re.search(r"at least (\d+) bytes", str(error.value))[1])
