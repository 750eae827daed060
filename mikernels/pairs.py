"""Collect the blocks of a matrix: into the matrix, its k best pairs, or its pairs above a threshold."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """Rows `row : row + n` and columns `col : col + k` of a matrix of mutual information, `[n, k]` float32.

    A symmetric matrix has only blocks on or above the diagonal; those on it are square.
    """

    row: int
    col: int
    mi: Tensor


class Pairs(NamedTuple):
    """Pairs of variables, the highest mutual information first; equal values in order of their indices.

    Arrays of the kind of the samples: tensors for tensors.

    Attributes:
        first: `[P]` int64, column of x.
        second: `[P]` int64, column of y, or of x where there is no y (then `first < second`).
        mi: `[P]` float32, nats.
    """

    first: Tensor
    second: Tensor
    mi: Tensor


def fill_matrix(blocks: Iterable[Block], out: Tensor, *, symmetric: bool) -> Tensor:
    """Write the blocks into `out [N, K]`, mirrored if symmetric."""
    for row, col, mi in blocks:
        rows, cols = slice(row, row + mi.shape[0]), slice(col, col + mi.shape[1])
        if symmetric and row == col:
            mi = mi.triu() + mi.triu(1).t()  # symmetric to the last bit, whatever order the sums took
        elif symmetric:
            out[cols, rows] = mi.t()
        out[rows, cols] = mi
    return out


def best_pairs(blocks: Iterable[Block], k: int, *, symmetric: bool) -> Pairs:
    """The k pairs with the highest mutual information. Holds at most k pairs and one block in memory."""
    best: Pairs | None = None
    for block in blocks:
        is_pair = _pair_mask(block, symmetric)
        values = block.mi.masked_fill(~is_pair, float("-inf")).flatten()
        floor = values.topk(min(k, len(values))).values[-1]
        if best is not None and len(best.mi) == k:  # later pairs must be at least as good
            floor = torch.maximum(floor, best.mi[-1])
        # Keep ties with the k-th pair until the sort.
        found = _pairs_of(block, is_pair & (block.mi >= floor))
        best = Pairs(*(t[:k] for t in _sorted([found] if best is None else [best, found])))
    if best is None:
        raise ValueError("blocks: expected at least one, got none")
    return best


def pairs_over(blocks: Iterable[Block], threshold: float, *, symmetric: bool) -> Pairs:
    """All pairs whose mutual information exceeds `threshold`."""
    return _sorted(
        [_pairs_of(block, _pair_mask(block, symmetric) & (block.mi > threshold)) for block in blocks]
    )


def merged(parts: Sequence[Pairs], k: int | None = None) -> Pairs:
    """The pairs of several sets of blocks in one order; the first k of them."""
    return Pairs(*(t[:k] for t in _sorted(list(parts))))


def _pair_mask(block: Block, symmetric: bool) -> Tensor:
    """Mask of the entries that stand for a pair: all, or those above the diagonal in a block on it; `[n, k]` bool."""
    is_pair = torch.ones_like(block.mi, dtype=torch.bool)
    return is_pair.triu_(1) if symmetric and block.row == block.col else is_pair


def _pairs_of(block: Block, mask: Tensor) -> Pairs:
    first, second = mask.nonzero(as_tuple=True)
    return Pairs(first + block.row, second + block.col, block.mi[first, second])


def _sorted(parts: list[Pairs]) -> Pairs:
    """All pairs in one order. Empties `parts` and frees whatever is done with: pairs may take more than the matrix."""
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    parts.clear()
    first, second, _ = columns
    place = first * (second.amax() + 1) + second if len(second) else first
    order = place.argsort()
    del first, second, place
    order = order[columns[2][order].argsort(stable=True, descending=True)]
    return Pairs(*(columns.pop(0)[order] for _ in range(3)))
