"""The work as operators of torch, so that `torch.compile` and `torch.export` keep a caller's graph whole.

`torch.ops.mikernels.*` take tensors that lie on the device to compute on, and the fields of `Settings`, which
`mikernels.api` checks and resolves.
"""

from typing import Any

import torch
from torch import Tensor

from mikernels.engine import Settings, blocks
from mikernels.pairs import Pairs, best_pairs, fill_matrix, pairs_over

INPUTS = (
    "Tensor x, Tensor? y, str estimator, int nodes, float bandwidth, str transform, bool calibrate, str impl, "
    "str precision, int? memory_budget, int seed, bool autotune"
)

torch.library.define("mikernels::mutual_information", f"({INPUTS}) -> Tensor")
torch.library.define("mikernels::top_pairs", f"({INPUTS}, int k) -> (Tensor, Tensor, Tensor)")
torch.library.define("mikernels::pairs_above", f"({INPUTS}, float threshold) -> (Tensor, Tensor, Tensor)")


def _matrix_of(x: Tensor, y: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[1], (x if y is None else y).shape[1], dtype=torch.float32)


def _pairs_of(x: Tensor, n_pairs: int | torch.SymInt) -> Pairs:
    index, other = (x.new_empty(n_pairs, dtype=torch.int64) for _ in range(2))
    return Pairs(index, other, x.new_empty(n_pairs, dtype=torch.float32))


@torch.library.impl("mikernels::mutual_information", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *settings: Any) -> Tensor:
    return fill_matrix(blocks(x, y, Settings(*settings)), _matrix_of(x, y), symmetric=y is None)


@torch.library.register_fake("mikernels::mutual_information")
def _(x: Tensor, y: Tensor | None, *settings: Any) -> Tensor:
    return _matrix_of(x, y)


@torch.library.impl("mikernels::top_pairs", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *settings_and_k: Any) -> tuple[Tensor, ...]:
    *settings, k = settings_and_k
    return tuple(best_pairs(blocks(x, y, Settings(*settings)), k, symmetric=y is None))


@torch.library.register_fake("mikernels::top_pairs")
def _(x: Tensor, y: Tensor | None, *settings_and_k: Any) -> tuple[Tensor, ...]:
    n = x.shape[1]
    n_pairs = n * (n - 1) // 2 if y is None else n * y.shape[1]
    return tuple(_pairs_of(x, torch.sym_min(settings_and_k[-1], n_pairs)))


@torch.library.impl("mikernels::pairs_above", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *settings_and_threshold: Any) -> tuple[Tensor, ...]:
    *settings, threshold = settings_and_threshold
    return tuple(pairs_over(blocks(x, y, Settings(*settings)), threshold, symmetric=y is None))


@torch.library.register_fake("mikernels::pairs_above")
def _(x: Tensor, y: Tensor | None, *settings_and_threshold: Any) -> tuple[Tensor, ...]:
    return tuple(_pairs_of(x, torch.library.get_ctx().new_dynamic_size()))
