"""Finer cells for the few pairs whose dependence is strong enough to fill them.

Each number of cells takes over gradually around a limit of the estimate so far.
"""

import math

import torch
from torch import Tensor

from mikernels.adaptive.extrapolation import LEAST_COUNT
from mikernels.adaptive.histograms import Cells, estimate_copies, estimate_pairs
from mikernels.caches import cached
from mikernels.options import MOST_ATOMS
from mikernels.tables.rungs import CELLS, cell_of_rank, rungs
from mikernels.tiling import cut

LIMITS = (0.1, 0.7, 1.5, 3.0)
"""Nats around which the next number of cells takes over, if M samples fill its boxes.

The time that the first limit saves costs weak dependence with sharp edges 0.006 nats at M = 8000 and 0.008 at 32,000.
"""
OVERLAP = 0.35
"""The takeover extends from `1 - OVERLAP` to `1 + OVERLAP` limits."""


def limits(n_samples: int) -> list[float]:
    """`LIMITS`, each raised to the nats at which M samples fill a box of the finer cells."""
    filled = [math.log(LEAST_COUNT) - rungs(n_samples, cells)[1].log_box for cells in CELLS[1:]]
    return [max(pair) for pair in zip(LIMITS, filled, strict=True)]


def takeover(value: Tensor, limit: float) -> Tensor:
    """Weight of the finer estimate, 0 to 1, given the coarser one in nats."""
    return ((value / limit - 1) / (2 * OVERLAP) + 0.5).clamp(0, 1)


def refine(values: Tensor, x: Cells, y: Cells, cells: tuple[int, ...], *, strip: int, upper: bool) -> None:
    """Blend finer estimates into those of `values [n, k]` (nats) that reach a limit, in place.

    Args:
        x, y: of n and k variables.
        cells: the last few of `CELLS`.
        strip: joint cells and samples to hold at once, but never less than one pair.
        upper: refine only pairs on or above the diagonal.
    """
    n_samples = x.finest.shape[1]
    pairs_at_once = max(1, strip // n_samples)
    for finer, limit in zip(cells, limits(n_samples)[-len(cells) :], strict=True):
        reached = values > limit * (1 - OVERLAP)
        row, col = (reached.triu_() if upper else reached).nonzero().unbind(1)
        if not len(row):
            return
        value = values[row, col]
        fine = value.new_full(value.shape, _self_information(n_samples, finer))
        differ = torch.cat([_differ(x, y, row[pairs], col[pairs]) for pairs in cut(len(row), pairs_at_once)])
        fine[differ] = estimate_pairs(x, y, row[differ], col[differ], finer, strip=strip).to(value.dtype)
        if x.atoms is not None:
            tied = ~differ & x.tied(row)
            fine[tied] = estimate_copies(x, row[tied], finer).to(value.dtype)
        values[row, col] = value.lerp(fine, takeover(value, limit))


def _differ(x: Cells, y: Cells, row: Tensor, col: Tensor) -> Tensor:
    """Which of the pairs `x[row]`, `y[col]` consist of two different variables: bool `[P]`."""
    return (x.finest.index_select(0, row) != y.finest.index_select(0, col)).any(1)


@cached(maxsize=32)
def _self_information(n_samples: int, cells: int) -> float:
    """Nats of a variable with itself or a copy, which is the same for all variables without atoms."""
    places = Cells(cell_of_rank(n_samples, CELLS[-1])[None])
    zero = torch.zeros(1, dtype=torch.int64)
    return float(estimate_pairs(places, places, zero, zero, cells, strip=1))


def refinement_bytes(tile: int, strip: int, n_samples: int) -> int:
    """Memory that `estimate_pairs` and `refine` need for a tile of pairs."""
    return 40 * max(strip, (CELLS[-1] + MOST_ATOMS // 2) ** 2 + n_samples) + 64 * tile * n_samples
