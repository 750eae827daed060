"""Sums of products of a matrix with itself, of which only the blocks on and below the diagonal are multiplied."""

from torch import Tensor

BLOCK = 1024
"""Columns along a block. A matrix of 4,864 columns needs 60 % of the products."""


def add_gram(total: Tensor, values: Tensor) -> None:
    """Add `values^T values` to the blocks on and below the diagonal of `total`, in place.

    Args:
        total: `[N, N]`; what is above these blocks is not touched (`mirror`).
        values: `[T, N]`.
    """
    for start in range(0, len(total), BLOCK):
        end = min(start + BLOCK, len(total))
        total[start:end, :end].addmm_(values[:, start:end].t(), values[:, :end])


def mirror(total: Tensor) -> Tensor:
    """Make `total [N, N]` symmetric by what is on and below the diagonal blocks, in place, and return it."""
    for start in range(BLOCK, len(total), BLOCK):
        end = min(start + BLOCK, len(total))
        total[:start, start:end] = total[start:end, :start].t()
    return total
