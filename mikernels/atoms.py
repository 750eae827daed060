"""Atoms: values that many samples of a column share, and ranks of the other samples among themselves.

A kernel must not smooth across the edge of an atom: the zeros of a ReLU are one value, not the lower part of a
continuum. A value is an atom if it has at least `ATOM_SHARE` of the samples, and `STANDS_OUT` times as many as either
of the values next to it: rounded values repeat too, but their neighbors repeat as often, and smoothing over them is
right. In a column of a few discrete values all are atoms, and those that are too rare form one more cell. Such a column
is an exact table of counts.

The rank r among the R samples outside of atoms is spread over all M ranks, to `floor((r + 1/2) M / R)`, so that the
tables over the ranks of M samples serve every column.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

ATOM_SHARE = 0.02
STANDS_OUT = 3
LEAST_ATOM = 8
"""Samples of an atom; values of low precision repeat a few times by chance."""


class Atoms(NamedTuple):
    """Of some columns.

    Attributes:
        number: `[n]` int64, cells for atoms.
        rest: `[n]` int64, samples outside of them.
    """

    number: Tensor
    rest: Tensor

    @classmethod
    def none(cls, n: int, n_samples: int, device: torch.device) -> "Atoms":
        count = torch.zeros(n, dtype=torch.int64, device=device)
        return cls(count, count + n_samples)


def least_atom(n_samples: int) -> int:
    """Samples that an atom has at least."""
    return max(LEAST_ATOM, math.ceil(ATOM_SHARE * n_samples))


def may_repeat(values: Tensor, order: Tensor, most: int) -> bool:
    """Whether a row of `values [n, M]`, sorted by `order`, may have an atom.

    A run of equal values that is long enough covers two neighbors of every `least_atom / 2`-th place. A look at those
    costs a CPU almost nothing; on other devices it would wait for the device, and the answer is True.
    """
    if most == 0 or values.shape[1] < LEAST_ATOM:
        return False
    if values.device.type != "cpu":
        return True
    probes = values.gather(1, order[:, :: least_atom(values.shape[1]) // 2])
    return any((probes[:, 1:] == probes[:, :-1]).any(1).tolist())


def codes_of_sorted(ordered: Tensor, most: int) -> tuple[Tensor, Atoms]:
    """What stands for each place of the sorted rows `ordered [n, M]` (integers or floats).

    Args:
        most: cells of a column for atoms. A column with too many keeps its most frequent ones in half of the cells.

    Returns:
        `[n, M]` int32, -1 - a in atom a (the most frequent first) and a rank from 0 to M - 1 elsewhere; and the atoms.
    """
    n, n_samples = ordered.shape
    least = least_atom(n_samples)
    probes = ordered[:, :: least // 2].contiguous()
    repeated = probes[:, 1:] == probes[:, :-1]
    first = repeated.clone()  # the first pair of probes in a run
    first[:, 1:] &= ~repeated[:, :-1]
    candidates = probes[:, :-1].contiguous()
    low = torch.searchsorted(ordered, candidates)
    high = torch.searchsorted(ordered, candidates, right=True)
    size = torch.where(first & (high - low >= least), high - low, 0)
    stands_out = size >= STANDS_OUT * _sizes_of_neighbors(ordered, low, high)

    found, rest = (size > 0).sum(1), n_samples - size.sum(1)
    lumped = rest < least  # too few to smooth
    cells = found + (lumped & (rest > 0))
    whole = lumped & (cells <= most)
    size, by_size = torch.where(whole[:, None] | stands_out, size, 0).sort(
        dim=1, descending=True, stable=True
    )
    low = low.gather(1, by_size)
    kept = torch.where(whole, found, (size > 0).sum(1).clamp(max=most // 2))
    number = torch.arange(size.shape[1], device=ordered.device)
    size = torch.where(number < kept[:, None], size, 0)
    rest = n_samples - size.sum(1)

    # One more than the atom at each place, 0 outside: up at the start of a run and down after its end.
    step = torch.where(size > 0, number + 1, 0)
    edges = torch.zeros(n, n_samples + 1, dtype=torch.int64, device=ordered.device)
    edges.scatter_add_(1, low, step).scatter_add_(1, low + size, -step)
    atom = edges[:, :-1].cumsum(1)
    is_rest = atom == 0
    rank = spread(is_rest.cumsum(1) - 1, rest[:, None], n_samples)
    outside = torch.where(whole[:, None], -1 - found[:, None], rank)
    codes = torch.where(is_rest, outside, -atom).int()
    return codes, Atoms(torch.where(whole, cells, kept), torch.where(whole, 0, rest))


def _sizes_of_neighbors(ordered: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Samples of the value before or after the places `low` to `high - 1` of sorted rows, the larger number."""
    last = ordered.shape[1] - 1
    before = ordered.gather(1, (low - 1).clamp(min=0))
    after = ordered.gather(1, high.clamp(max=last))
    n_before = low - torch.searchsorted(ordered, before)  # 0 at the start of a row
    n_after = torch.searchsorted(ordered, after, right=True) - high
    return n_before.maximum(n_after)


def spread(rank: Tensor, rest: Tensor, n_samples: int) -> Tensor:
    """Ranks among `rest` samples, spread evenly over those of M samples."""
    return ((2 * rank + 1) * n_samples).div(2 * rest.clamp(min=1), rounding_mode="floor")
