"""The public functions as torch operators, so that `torch.compile` and `torch.export` keep a caller's graph whole.

`torch.ops.mikernels.*` take tensors on the device to compute on, and resolved options (`mikernels.options`). They are
isolated from torch's global state here, where `torch.compile` does not look.
"""

from typing import Any

import torch
from torch import Tensor

from mikernels.engine import compute_blocks
from mikernels.isolation import isolated
from mikernels.options import SCHEMA, Options, from_operator
from mikernels.pairs import Pairs, best_pairs, fill_matrix, pairs_over
from mikernels.provenance import provenance_of, remember
from mikernels.ranks import ALONE, Ranks, checksum

INPUTS = f"Tensor x, Tensor? y, {SCHEMA}"

PAIRS = "(Tensor, Tensor, Tensor)"
# They wait for the device and ask for its free memory, neither of which a CUDA graph can record.
TAGS = (torch.Tag.cudagraph_unsafe,)

torch.library.define("mikernels::mutual_information", f"({INPUTS}) -> Tensor", tags=TAGS)
torch.library.define("mikernels::top_pairs", f"({INPUTS}, int k) -> {PAIRS}", tags=TAGS)
torch.library.define("mikernels::pairs_above", f"({INPUTS}, float threshold) -> {PAIRS}", tags=TAGS)


def _empty_matrix(x: Tensor, y: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[1], (x if y is None else y).shape[1], dtype=torch.float32)


def _empty_pairs(x: Tensor, n_pairs: int | torch.SymInt) -> Pairs:
    first, second = (x.new_empty(n_pairs, dtype=torch.int64) for _ in range(2))
    return Pairs(first, second, x.new_empty(n_pairs, dtype=torch.float32))


@isolated()
def matrix(x: Tensor, y: Tensor | None, options: Options, ranks: Ranks = ALONE) -> Tensor:
    """The matrix for resolved options.

    Args:
        ranks: processes that share out its blocks; all of them get the whole matrix.

    Raises:
        ValueError: see `mikernels.mutual_information`; or the processes have other samples or options.
        RankError: another process cannot be reached.
    """
    mi = _empty_matrix(x, y)
    if ranks.count > 1:
        ranks.check_same({"x": checksum(x), "y": None if y is None else checksum(y)} | options)
        mi.fill_(-0.0)  # plus which every number is itself
    fill_matrix(compute_blocks(x, y, options, ranks), mi, symmetric=y is None)
    ranks.add(mi)
    remember(mi, provenance_of(options, len(x)))
    return mi


@torch.library.impl("mikernels::mutual_information", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *options: Any) -> Tensor:
    return matrix(x, y, from_operator(options))


@torch.library.register_fake("mikernels::mutual_information")
def _(x: Tensor, y: Tensor | None, *options: Any) -> Tensor:
    return _empty_matrix(x, y)


@torch.library.impl("mikernels::top_pairs", "CompositeExplicitAutograd")
@isolated()
def _(x: Tensor, y: Tensor | None, *options_and_k: Any) -> tuple[Tensor, ...]:
    *options, k = options_and_k
    chosen = from_operator(options)
    pairs = best_pairs(compute_blocks(x, y, chosen), k, symmetric=y is None)
    remember(pairs.mi, provenance_of(chosen, len(x)))
    return tuple(pairs)


@torch.library.register_fake("mikernels::top_pairs")
def _(x: Tensor, y: Tensor | None, *options_and_k: Any) -> tuple[Tensor, ...]:
    n = x.shape[1]
    n_pairs = n * (n - 1) // 2 if y is None else n * y.shape[1]
    return tuple(_empty_pairs(x, torch.sym_min(options_and_k[-1], n_pairs)))


@torch.library.impl("mikernels::pairs_above", "CompositeExplicitAutograd")
@isolated()
def _(x: Tensor, y: Tensor | None, *options_and_threshold: Any) -> tuple[Tensor, ...]:
    *options, threshold = options_and_threshold
    chosen = from_operator(options)
    pairs = pairs_over(compute_blocks(x, y, chosen), threshold, symmetric=y is None)
    remember(pairs.mi, provenance_of(chosen, len(x)))
    return tuple(pairs)


@torch.library.register_fake("mikernels::pairs_above")
def _(x: Tensor, y: Tensor | None, *options_and_threshold: Any) -> tuple[Tensor, ...]:
    return tuple(_empty_pairs(x, torch.library.get_ctx().new_dynamic_size()))
