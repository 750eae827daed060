"""Tables behind `adaptive`: the cell of every rank, and the kernels of every bandwidth.

They depend on the number of samples M alone, since ranked variables all have the same margin.
`mikernels.reference.adaptive` defines and explains the terms: cell, rung, V, floor, and equivalent box.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.caches import cached
from mikernels.transforms import normal_scores

CELLS = (32, 64, 128, 256, 512)
"""Cells along a side where a ladder may start. Each is twice the one before, so finer cells nest in coarser ones."""
COARSEST = 4
"""Cells of the last rungs of every ladder."""
BANDWIDTHS = (1.0, math.sqrt(2))
"""In cells. Two for each number of cells, so the bandwidth doubles over two rungs."""
WARP = 1.2
REACH = 3.4
"""A normal score q, clamped to +-REACH, lies at `Phi(q / WARP)` of the cells."""


class Rung(NamedTuple):
    """One bandwidth at M samples.

    Attributes:
        cells: G.
        kernel: sqrt(2) S, so that `f = kernel counts kernel`: `[G, G]` float64 on the CPU.
        margin: what the margins and the constants subtract from `1/M sum counts psi`, nats.
        excess: logarithm of the mass that the floor adds to the density, nats.
        log_box: logarithm of the number of samples in the equivalent box, for independent variables.
    """

    cells: int
    kernel: Tensor
    margin: float
    excess: float
    log_box: float


@cached(maxsize=8)
def cell_of_rank(n_samples: int, cells: int) -> Tensor:
    """Cell of each rank, `[M]` int64 on the CPU, 0 to cells - 1."""
    score = normal_scores(n_samples).clamp(-REACH, REACH)
    low, high = torch.special.ndtr(torch.tensor([-REACH, REACH], dtype=torch.float64) / WARP)
    place = (torch.special.ndtr(score / WARP) - low) / (high - low)
    return (place * cells).long().clamp(0, cells - 1)


@cached(maxsize=8)
def rungs(n_samples: int, cells: int) -> tuple[Rung, ...]:
    """The ladder that starts at `cells`, finest rung first."""
    ladder = []
    counts = torch.bincount(cell_of_rank(n_samples, cells), minlength=cells).double()
    while cells >= COARSEST:
        place = torch.arange(cells, dtype=torch.float64)
        for h in BANDWIDTHS:
            kernel = torch.exp(-0.5 * ((place[:, None] - place) / h).square())
            smooth = kernel @ counts
            margin = 2 * float(torch.special.xlogy(counts, smooth).sum()) / n_samples
            mass = (float(smooth.sum()) / n_samples) ** 2 * n_samples
            ladder.append(
                Rung(
                    cells=cells,
                    kernel=math.sqrt(2) * kernel,
                    margin=margin - 2 * math.log(n_samples) + math.log(2 * (n_samples - 1)),
                    excess=math.log1p(math.sqrt(1 / 12) * cells**2 / mass),
                    log_box=math.log(4 * math.pi * h**2 * n_samples / cells**2),
                )
            )
        counts = counts.view(-1, 2).sum(1)
        cells //= 2
    return tuple(ladder)
