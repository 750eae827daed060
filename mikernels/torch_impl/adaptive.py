"""`adaptive` with joint counts as histograms, many pairs at once, and the ladder as matrix products.

Work for a pair at G = 32 cells: M increments, which take a CPU less time than a product of one-hot operands
(`benchmarks/counts.py`), 0.3 MFLOP and 2,700 logarithms. The pairs above 0.1 nats are done again on finer cells.
"""

import functools

import torch
from torch import Tensor

from mikernels.tables.ladder import (
    CELLS,
    OVERLAP,
    Rung,
    cell_of_rank,
    extrapolated,
    limits,
    rungs,
    takeover,
)
from mikernels.tiling import cut
from mikernels.transforms import Variables

STRIP = 2**20
"""Joint cells and samples of the pairs that are counted at once: near the cache, and enough work for threads."""


class Adaptive:
    tile = 128
    halvings = 0

    def panel_bytes(self, n_samples: int) -> int:
        return 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 1024 * tile**2 + estimate_bytes(tile, STRIP, n_samples)

    def panel(self, variables: Variables, columns: slice) -> Tensor:
        return finest_cells(variables.data[columns])

    def compute(self, left: Tensor, rows: slice, right: Tensor, cols: slice, *, upper: bool) -> Tensor:
        x, y = left[rows], right[cols]
        wanted = torch.ones(len(x), len(y), dtype=torch.bool, device=x.device)
        row, col = (wanted.triu_() if upper else wanted).nonzero().unbind(1)
        values = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
        values[row, col] = estimate(x, y, row, col, CELLS[0], strip=STRIP)
        refine(values, x, y, CELLS[1:], strip=STRIP, upper=upper)
        return values.float()


def finest_cells(ranks: Tensor) -> Tensor:
    """`[n, M]` int64 of ranks `[n, M]`; coarser cells are these without their last bits."""
    return cell_of_rank(ranks.shape[1], CELLS[-1]).to(ranks.device)[ranks]


def refine(values: Tensor, x: Tensor, y: Tensor, cells: tuple[int, ...], *, strip: int, upper: bool) -> None:
    """Take those in `values [n, k]` (nats) that exceed a limit over to the finer of `cells`, in place.

    Args:
        x, y: finest cells `[n, M]` and `[k, M]`.
        cells: the last few of `CELLS`.
        strip: joint cells and samples of pairs at once; never less than one pair.
        upper: only pairs on or above the diagonal are wanted.
    """
    n_samples = x.shape[1]
    at_once = max(1, strip // n_samples)
    for finer, limit in zip(cells, limits(n_samples)[-len(cells) :], strict=True):
        exceeds = values > limit * (1 - OVERLAP)
        row, col = (exceeds.triu_() if upper else exceeds).nonzero().unbind(1)
        if not len(row):
            return
        value = values[row, col]
        fine = value.new_full(value.shape, _itself(n_samples, finer))
        differ = torch.cat([_differ(x, y, row[some], col[some]) for some in cut(len(row), at_once)])
        fine[differ] = estimate(x, y, row[differ], col[differ], finer, strip=strip).to(value.dtype)
        values[row, col] = value.lerp(fine, takeover(value, limit))


def estimate(x: Tensor, y: Tensor, row: Tensor, col: Tensor, cells: int, *, strip: int) -> Tensor:
    """Nats `[P]`, float64, of the pairs `x[row]`, `y[col]` on so many cells."""
    n_samples = x.shape[1]
    ladder = rungs(n_samples, cells)
    at_once = max(1, strip // (cells**2 + n_samples))
    shift = (CELLS[-1] // cells).bit_length() - 1
    left, right = (x >> shift) * cells, y >> shift
    ratios = [x.new_empty(len(ladder), 0, dtype=torch.float64)]
    for some in cut(len(row), at_once):
        places = left.index_select(0, row[some]).add_(right.index_select(0, col[some]))
        ratios.append(climb(counts_of(places, cells), ladder, n_samples))
    return extrapolated(torch.cat(ratios, dim=1), ladder, n_samples)


def _differ(x: Tensor, y: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Which of the pairs `x[row]`, `y[col]` are not twice the same."""
    return (x.index_select(0, row) != y.index_select(0, col)).any(1)


def counts_of(places: Tensor, cells: int) -> Tensor:
    """`[P, G, G]` float32 of joint places `[P, M]`, each G a + b."""
    counts = torch.zeros(len(places), cells**2, device=places.device)
    counts.scatter_add_(1, places, counts.new_ones(()).expand_as(places))  # whole numbers: in any order
    return counts.view(-1, cells, cells)


def climb(counts: Tensor, ladder: tuple[Rung, ...], n_samples: int) -> Tensor:
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
            f = _banded(_banded(counts, kernel).transpose(1, 2), kernel).transpose(1, 2)
        logs = f.sub_(1.5).square_().add_(1 / 12).log_().mul_(counts)
        # torch adds in an order that depends on the shape; in float64 that is lost in the rounding to float32.
        total = logs.sum(2).sum(1, dtype=torch.float64)
        ratios.append(total / (2 * n_samples) - rung.margin)
    return torch.stack(ratios)


def _banded(values: Tensor, kernel: Tensor) -> Tensor:
    """`values @ kernel` in blocks of 64 columns, from the 16 cells on either side that a kernel reaches to."""
    blocks = torch.nn.functional.pad(values, (16, 16)).unfold(-1, 96, 64).reshape(-1, 96)
    some = kernel[48:144, 64:128]  # any 64 columns that have 16 cells on either side
    return (blocks @ some).view(values.shape)


@functools.lru_cache(maxsize=32)
def _itself(n_samples: int, cells: int) -> float:
    """Nats of a variable with itself or its copy: the same for all."""
    places = finest_cells(torch.arange(n_samples)[None])
    zero = torch.zeros(1, dtype=torch.int64)
    return float(estimate(places, places, zero, zero, cells, strip=1))


def estimate_bytes(tile: int, strip: int, n_samples: int) -> int:
    """Memory that `estimate` and `refine` need for a tile of pairs."""
    return 40 * max(strip, CELLS[-1] ** 2 + n_samples) + 64 * tile * n_samples
