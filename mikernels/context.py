"""How far the entries of a matrix stand out from the other entries of their row and their column, block by block."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.pairs import Block
from mikernels.ranks import ALONE, Ranks

ROUNDING = 1e-12
"""Of the mean square: less variance than this is none."""


class Axes(NamedTuple):
    """What the rows and the columns of a matrix are.

    Attributes:
        n_rows, n_cols: N and K.
        own: `[N]` int64, the column that is the same variable as each row; None if no row is a column, or if symmetric.
        symmetric: whether every variable is both a row and a column, in the same order.
    """

    n_rows: int
    n_cols: int
    own: Tensor | None
    symmetric: bool

    def with_self(self, block: Block, value: float) -> Tensor:
        """The entries of a block with `value` where row and column are the same variable, and in a block on the
        diagonal of a symmetric matrix also below it, where the method may have computed nothing."""
        row, col, entries = block
        if self.symmetric:
            if row != col:
                return entries
            return entries.masked_fill(torch.ones_like(entries, dtype=torch.bool).tril_(), value)
        if self.own is None:
            return entries
        column = self.own[row : row + len(entries), None] - col
        return entries.masked_fill(column == torch.arange(entries.shape[1], device=entries.device), value)


def context_scores(
    blocks: Callable[[], Iterable[Block]], axes: Axes, device: torch.device, ranks: Ranks = ALONE
) -> Iterator[Block]:
    """The scores of `mikernels.networks.clr`, in the precision of the blocks; -inf for a variable with itself.

    Args:
        blocks: gives all blocks of the matrix, or in a symmetric one those on or above the diagonal. It is called
            twice: for sums of rows and columns, and for the scores.
        ranks: processes that share out the blocks.
    """
    of_rows = torch.zeros(2, axes.n_rows, dtype=torch.float64, device=device)  # of values, and of squares
    of_cols = of_rows if axes.symmetric else of_rows.new_zeros(2, axes.n_cols)
    for block in blocks():
        values = axes.with_self(block, 0.0)
        rows, cols = _place(block)
        of_rows[:, rows] += _sums(values, 1)
        of_cols[:, cols] += _sums(values, 0)
    ranks.add(*([of_rows] if axes.symmetric else [of_rows, of_cols]))
    n_others = torch.full_like(of_rows[0], axes.n_cols - (axes.symmetric or axes.own is not None))
    row_mean, row_deviation = _background(of_rows, n_others)
    if axes.symmetric:
        mean, deviation = row_mean, row_deviation
    else:
        n_others = torch.full_like(of_cols[0], axes.n_rows)
        if axes.own is not None:
            n_others[axes.own] -= 1
        mean, deviation = _background(of_cols, n_others)
    for block in blocks():
        rows, cols = _place(block)
        score = _above(block.mi, row_mean[rows, None], row_deviation[rows, None])
        torch.hypot(score, _above(block.mi, mean[cols], deviation[cols]), out=score)
        yield block._replace(mi=axes.with_self(block._replace(mi=score), -torch.inf))


def _above(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Deviations above the mean, in the precision of the values; 0 below it."""
    return (values - mean.to(values.dtype)).div_(deviation.to(values.dtype)).clamp_(min=0)


def _place(block: Block) -> tuple[slice, slice]:
    n, k = block.mi.shape
    return slice(block.row, block.row + n), slice(block.col, block.col + k)


def _sums(values: Tensor, dim: int) -> Tensor:
    """Along a dimension, of values and of their squares; `[2, n]` float64."""
    norm = torch.linalg.vector_norm(values, dim=dim, dtype=torch.float64)
    return torch.stack([values.sum(dim, dtype=torch.float64), norm.square()])


def _background(sums: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from `_sums` of so many values; infinite deviation where all are equal, which makes
    every score 0."""
    mean, square = sums / number.clamp(min=1)
    variance = square - mean.square()
    return mean, torch.where(variance > ROUNDING * square, variance.sqrt(), torch.inf)
