"""How far the entries of a matrix stand out from the other entries of their row and their column, block by block."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.pairs import Block
from mikernels.ranks import ALONE, Ranks

ROUNDING = 4
"""Units in the last place of the mean: a smaller deviation is none."""


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
    blocks: Callable[[], Iterable[Block]],
    axes: Axes,
    device: torch.device,
    ranks: Ranks = ALONE,
    *,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Block]:
    """The scores of `mikernels.networks.clr`, in the precision of the blocks; -inf for a variable with itself.

    Args:
        blocks: gives all blocks of the matrix, or in a symmetric one those on or above the diagonal. It is called
            twice: for sums of rows and columns, and for the scores.
        ranks: processes that share out the blocks.
        dtype: of the blocks. The sums are float64, and so precise enough for squares of float32; float64 takes a second
            pass, over distances from the means.
    """
    row_mean = torch.zeros(axes.n_rows, dtype=torch.float64, device=device)
    col_mean = row_mean if axes.symmetric else row_mean.new_zeros(axes.n_cols)
    of_row = torch.full_like(row_mean, axes.n_cols - (axes.symmetric or axes.own is not None))
    of_col = of_row if axes.symmetric else torch.full_like(col_mean, axes.n_rows)
    if axes.own is not None:
        of_col[axes.own] -= 1
    for _ in range(2 if dtype == torch.float64 else 1):
        of_rows = torch.zeros(2, axes.n_rows, dtype=torch.float64, device=device)  # of values, and of squares
        of_cols = of_rows if axes.symmetric else of_rows.new_zeros(2, axes.n_cols)
        for block in blocks():
            rows, cols = _place(block)
            of_rows[:, rows] += _sums(block, axes, row_mean[rows, None], 1)
            of_cols[:, cols] += _sums(block, axes, col_mean[cols], 0)
        ranks.add(*([of_rows] if axes.symmetric else [of_rows, of_cols]))
        row_mean, row_deviation = _background(of_rows, of_row, row_mean, dtype)
        if axes.symmetric:
            col_mean, col_deviation = row_mean, row_deviation
        else:
            col_mean, col_deviation = _background(of_cols, of_col, col_mean, dtype)
    for block in blocks():
        rows, cols = _place(block)
        score = _above(block.mi, row_mean[rows, None], row_deviation[rows, None])
        torch.hypot(score, _above(block.mi, col_mean[cols], col_deviation[cols]), out=score)
        yield block._replace(mi=axes.with_self(block._replace(mi=score), -torch.inf))


def _above(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Deviations above the mean, in the precision of the values; 0 below it."""
    return (values - mean.to(values.dtype)).div_(deviation.to(values.dtype)).clamp_(min=0)


def _place(block: Block) -> tuple[slice, slice]:
    n, k = block.mi.shape
    return slice(block.row, block.row + n), slice(block.col, block.col + k)


def _sums(block: Block, axes: Axes, near: Tensor, dim: int) -> Tensor:
    """Along a dimension, of the distances from `near` and of their squares; `[2, n]` float64."""
    distance = axes.with_self(block._replace(mi=block.mi - near.to(block.mi.dtype)), 0.0)
    norm = torch.linalg.vector_norm(distance, dim=dim, dtype=torch.float64)
    return torch.stack([distance.sum(dim, dtype=torch.float64), norm.square()])


def _background(sums: Tensor, number: Tensor, near: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from `_sums` of so many values; infinite deviation where all are equal but for the
    rounding of their dtype, which makes every score 0."""
    distance, square = sums / number.clamp(min=1)
    mean, variance = near + distance, square - distance.square()
    least = (ROUNDING * torch.finfo(dtype).eps * mean).square()
    return mean, torch.where(variance > least, variance.sqrt(), torch.inf)
