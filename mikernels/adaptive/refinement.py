"""Finer cells for the few pairs whose dependence is strong enough to fill them.

Each number of cells takes over gradually around a limit of the estimate so far. A pair is counted into a joint
histogram; the ladder of bandwidths is then a pair of matrix products per rung, for many pairs at a time.
"""

import math

import torch
from torch import Tensor

from mikernels.adaptive.extrapolation import LEAST_COUNT, extrapolate
from mikernels.caches import cached
from mikernels.tables.rungs import CELLS, Rung, cell_of_rank, rungs
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


def finest_cells(ranks: Tensor) -> Tensor:
    """`[n, M]` int64 cells of ranks `[n, M]` at the finest resolution; dropping low bits gives coarser cells."""
    return cell_of_rank(ranks.shape[1], CELLS[-1]).to(ranks.device)[ranks]


def refine(values: Tensor, x: Tensor, y: Tensor, cells: tuple[int, ...], *, strip: int, upper: bool) -> None:
    """Blend finer estimates into those of `values [n, k]` (nats) that reach a limit, in place.

    Args:
        x, y: finest cells `[n, M]` and `[k, M]`.
        cells: the last few of `CELLS`.
        strip: joint cells and samples to hold at once, but never less than one pair.
        upper: refine only pairs on or above the diagonal.
    """
    n_samples = x.shape[1]
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
        values[row, col] = value.lerp(fine, takeover(value, limit))


def estimate_pairs(x: Tensor, y: Tensor, row: Tensor, col: Tensor, cells: int, *, strip: int) -> Tensor:
    """Nats `[P]`, float64, of the pairs `x[row]`, `y[col]` (finest cells) by the ladder that starts at `cells`."""
    n_samples = x.shape[1]
    ladder = rungs(n_samples, cells)
    pairs_at_once = max(1, strip // (cells**2 + n_samples))
    shift = (CELLS[-1] // cells).bit_length() - 1
    left, right = (x >> shift) * cells, y >> shift
    ratios = [x.new_empty(len(ladder), 0, dtype=torch.float64)]
    for pairs in cut(len(row), pairs_at_once):
        places = left.index_select(0, row[pairs]).add_(right.index_select(0, col[pairs]))
        ratios.append(log_ratios(joint_counts(places, cells), ladder, n_samples))
    return extrapolate(torch.cat(ratios, dim=1), ladder, n_samples)


def _differ(x: Tensor, y: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Which of the pairs `x[row]`, `y[col]` consist of two different variables: bool `[P]`."""
    return (x.index_select(0, row) != y.index_select(0, col)).any(1)


def joint_counts(places: Tensor, cells: int) -> Tensor:
    """`[P, G, G]` float32 histograms of joint places `[P, M]`, each `G a + b`."""
    counts = torch.zeros(len(places), cells**2, device=places.device)
    counts.scatter_add_(1, places, counts.new_ones(()).expand_as(places))  # exact in any order
    return counts.view(-1, cells, cells)


def log_ratios(counts: Tensor, ladder: tuple[Rung, ...], n_samples: int) -> Tensor:
    """V on every rung: `[rungs, P]` float64 from counts `[P, G, G]` (float32)."""
    ratios = []
    for rung in ladder:
        g = rung.cells
        if g < counts.shape[1]:
            counts = counts[:, 0::2] + counts[:, 1::2]
            counts = counts[..., 0::2] + counts[..., 1::2]
        kernel = rung.kernel.to(counts.device, torch.float32)
        if g < 256:
            f = kernel @ (counts.view(-1, g) @ kernel).view(-1, g, g)
        else:
            f = _banded_product(_banded_product(counts, kernel).transpose(1, 2), kernel).transpose(1, 2)
        logs = f.sub_(1.5).square_().add_(1 / 12).log_().mul_(counts)
        # torch's order of summation depends on the shape; in float64, rounding to float32 hides the difference.
        total = logs.sum(2).sum(1, dtype=torch.float64)
        ratios.append(total / (2 * n_samples) - rung.margin)
    return torch.stack(ratios)


def _banded_product(values: Tensor, kernel: Tensor) -> Tensor:
    """`values @ kernel` in blocks of 64 columns; a kernel is below 1e-31 beyond 16 cells on either side."""
    blocks = torch.nn.functional.pad(values, (16, 16)).unfold(-1, 96, 64).reshape(-1, 96)
    band = kernel[48:144, 64:128]  # the same for any 64 columns with 16 cells on either side
    return (blocks @ band).view(values.shape)


@cached(maxsize=32)
def _self_information(n_samples: int, cells: int) -> float:
    """Nats of a variable with itself or a copy, which is the same for all ranked variables."""
    places = finest_cells(torch.arange(n_samples)[None])
    zero = torch.zeros(1, dtype=torch.int64)
    return float(estimate_pairs(places, places, zero, zero, cells, strip=1))


def refinement_bytes(tile: int, strip: int, n_samples: int) -> int:
    """Memory that `estimate_pairs` and `refine` need for a tile of pairs."""
    return 40 * max(strip, CELLS[-1] ** 2 + n_samples) + 64 * tile * n_samples
