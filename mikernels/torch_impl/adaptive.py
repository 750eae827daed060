"""`adaptive` with the joint counts as products of one-hot 8-bit integers and the ladder as matrix products.

Work for a pair: 2 M G^2 integer operations for the counts at G = 64 cells, 2.4 MFLOP and 11,000 logarithms for
the ladder. The few pairs above 0.7 nats are done again, some at a time, on finer cells.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.adaptive import (
    CELLS,
    OVERLAP,
    Rung,
    cell_of_rank,
    extrapolated,
    limits,
    rungs,
    takeover,
)
from mikernels.tiles import cut
from mikernels.torch_impl.integer import integer_gram
from mikernels.transforms import Variables

STRIP_CELLS = 2**19
"""Joint cells whose ladder is climbed at once: its temporaries (about 8 MB) stay near the cache."""


class Panel(NamedTuple):
    ranks: Tensor  # [n, M] int32
    features: Tensor  # [M, n * G] int8, one-hot cells


class Adaptive:
    tile = 32
    halvings = 1

    def panel_bytes(self, n_samples: int) -> int:
        return n_samples * (CELLS[0] + 16)

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        ladder = 24 * max(STRIP_CELLS, tile * CELLS[0] ** 2)
        return 16 * (tile * CELLS[0]) ** 2 + max(ladder, refine_bytes(STRIP_CELLS, n_samples))

    def panel(self, variables: Variables, columns: slice) -> Panel:
        ranks = variables.data[columns]
        cell = cell_of_rank(variables.n_samples, CELLS[0]).to(ranks.device)
        one_hot = torch.eye(CELLS[0], dtype=torch.int8, device=ranks.device)[cell]  # [M, G]
        features = one_hot.index_select(0, ranks.t().reshape(-1)).view(variables.n_samples, -1)
        return Panel(ranks, features)

    def compute(self, left: Panel, rows: slice, right: Panel, cols: slice, *, upper: bool) -> Tensor:
        g = CELLS[0]
        a = left.features[:, rows.start * g : rows.stop * g]
        b = right.features[:, cols.start * g : cols.stop * g]
        x, y = left.ranks[rows], right.ranks[cols]
        joint = integer_gram(a, b).view(len(x), g, len(y), g)
        strips = joint.split(max(1, STRIP_CELLS // (len(y) * g * g)))
        n_samples = x.shape[1]
        ladder = rungs(n_samples, g)
        parts = [extrapolated(climb(s.float(), ladder, n_samples), ladder, n_samples) for s in strips]
        values = torch.cat(parts)
        refine(values, x, y, strip=STRIP_CELLS, upper=upper)
        return values.float()


def climb(counts: Tensor, ladder: tuple[Rung, ...], n_samples: int) -> Tensor:
    """V on every rung: `[rungs, n, k]` float64 from counts `[n, G, k, G]` (float32)."""
    ratios = []
    for rung in ladder:
        n, g, k, _ = counts.shape
        if rung.cells < g:
            counts = counts[:, 0::2] + counts[:, 1::2]
            counts = counts[..., 0::2] + counts[..., 1::2]
            g = rung.cells
        kernel = rung.kernel.to(counts.device, torch.float32)
        if g < 256:
            f = (kernel @ (counts @ kernel).view(n, g, k * g)).view_as(counts)
        else:
            f = _banded(_banded(counts, kernel).transpose(1, 3), kernel).transpose(1, 3)
        logs = f.sub_(1.5).square_().add_(1 / 12).log_().mul_(counts)
        # torch adds in an order that depends on the shape; in float64 that is lost in the rounding to float32.
        total = logs.sum(3, dtype=torch.float64).sum(1)
        ratios.append(total / (2 * n_samples) - rung.margin)
    return torch.stack(ratios)


def _banded(values: Tensor, kernel: Tensor) -> Tensor:
    """`values @ kernel` in blocks of 64 columns, from the 16 cells on either side that a kernel reaches to."""
    blocks = torch.nn.functional.pad(values, (16, 16)).unfold(-1, 96, 64).reshape(-1, 96)
    some = kernel[48:144, 64:128]  # any 64 columns that have 16 cells on either side
    return (blocks @ some).view(values.shape)


def refine(values: Tensor, x: Tensor, y: Tensor, *, strip: int, upper: bool) -> None:
    """Take those in `values [n, k]` (nats) that exceed a limit over to the finer cells, in place.

    Args:
        x, y: ranks `[n, M]` and `[k, M]`.
        strip: joint cells and samples of pairs at once, which take 40 bytes each; never less than one pair.
        upper: only pairs on or above the diagonal are wanted.
    """
    n_samples = x.shape[1]
    for cells, limit in zip(CELLS[1:], limits(n_samples), strict=True):
        exceeds = values > limit - OVERLAP
        pairs = (exceeds.triu_() if upper else exceeds).nonzero()
        for some in cut(len(pairs), max(1, strip // (cells**2 + n_samples))):
            row, col = pairs[some].unbind(1)
            a, b = x[row], y[col]
            finer = values.new_full((len(a),), _itself(n_samples, cells))
            differ = (a != b).any(1)
            finer[differ] = _finer(a[differ], b[differ], cells).to(values.dtype)
            value = values[row, col]
            values[row, col] = value.lerp(finer, takeover(value, limit))


def refine_bytes(strip: int, n_samples: int) -> int:
    """Memory that `refine` needs."""
    return 40 * max(strip, CELLS[-1] ** 2 + n_samples)


def _finer(x: Tensor, y: Tensor, cells: int) -> Tensor:
    """Nats `[P]`, float64, of ranks `x [P, M]` with `y [P, M]`, row by row."""
    n_pairs, n_samples = x.shape
    cell = cell_of_rank(n_samples, cells).to(x.device)
    place = cell[x] * cells + cell[y]
    counts = x.new_zeros(n_pairs, cells**2, dtype=torch.float32)
    counts.scatter_add_(1, place, counts.new_ones(()).expand_as(place))  # whole numbers: in any order
    ladder = rungs(n_samples, cells)
    return extrapolated(climb(counts.view(n_pairs, cells, 1, cells), ladder, n_samples), ladder, n_samples)[
        :, 0
    ]


@functools.lru_cache(maxsize=32)
def _itself(n_samples: int, cells: int) -> float:
    """Nats of a variable with itself or its copy: the same for all."""
    rank = torch.arange(n_samples)[None]
    return float(_finer(rank, rank, cells))
