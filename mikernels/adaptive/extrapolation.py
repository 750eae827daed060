"""From the log ratio V on every rung to one estimate: choose bandwidths and extrapolate them to zero.

`mikernels.reference.adaptive` has the equations and their reasons.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.tables.rungs import BANDWIDTHS, Rung


class AtomTerms(NamedTuple):
    """What a pair with atoms has of its own, where others share the numbers of `Rung`; nats.

    Attributes:
        excess, log_box: `[rungs, P]`, as in `Rung`.
        beyond: `[P]`, V of a single cell for all samples outside of atoms.
    """

    excess: Tensor
    log_box: Tensor
    beyond: Tensor


LEAST_COUNT = 6.0
"""Samples that the box of a usable rung holds in the geometric mean."""
LIKELIHOOD_POWER = 0.5
"""Of a rung's likelihood in its weight."""
LEAST_SHARE = 0.5
"""Of the first difference. Smooth ridges alone would have 1/3, but no pair is observed free of noise."""
EDGE_RATIO = 0.55
"""Ratio of differences that indicates an edge: above the exact 1/2, since noise raises it."""


def extrapolate(
    ratios: Tensor, ladder: tuple[Rung, ...], n_samples: int, atoms: AtomTerms | None = None
) -> Tensor:
    """Combine V on every rung of a ladder, `[rungs, ...]` nats, into one estimate `[...]`.

    `atoms`: the terms of pairs with atoms; the others share those of the ladder.
    """
    last, step = len(ladder) - 1, len(BANDWIDTHS)

    def column(values: list[float]) -> Tensor:
        return ratios.new_tensor(values).view(-1, *[1] * (ratios.ndim - 1))

    excess = column([rung.excess for rung in ladder]) if atoms is None else atoms.excess
    log_box = column([rung.log_box for rung in ladder]) if atoms is None else atoms.log_box
    likelihood = ratios - excess
    filled = ratios + log_box >= math.log(LEAST_COUNT)
    filled[last] = True
    finest = filled.to(torch.uint8).argmax(0)  # the first filled rung
    # Beyond the ladder there is a single cell outside of atoms; without atoms V = 0.
    beyond = ratios.new_zeros(ratios.shape[1:]) if atoms is None else atoms.beyond
    padded = torch.cat([ratios, beyond.expand(2 * step, *ratios.shape[1:])])
    losses = padded[:-step] - padded[step:]  # by how much doubling the bandwidth lowers V
    values = ratios + losses[:-step] * _lost_share(losses[:-step], losses[step:])
    next_finer = (torch.arange(last + 1, device=ratios.device) - 1).view(-1, *[1] * finest.ndim)
    weight = torch.softmax(LIKELIHOOD_POWER * n_samples * likelihood, dim=0)
    return (weight * values.gather(0, next_finer.maximum(finest))).sum(0)


def _lost_share(first: Tensor, second: Tensor) -> Tensor:
    """What smoothing has cost, in units of the `first` difference; `second` is that of twice the bandwidth."""
    growth = torch.exp(2 * first.clamp(1e-4, math.log(2) - 0.01))  # (1 + 4 a) / (1 + a), from 1 to 4
    a = ((growth - 1) / (4 - growth)).clamp(max=1)
    ridge = 0.5 * ((1 + 4 * a) / (1 + a)).log()
    share = (0.5 * a.log1p() / ridge).clamp(min=LEAST_SHARE)
    ratio = ridge / (0.5 * ((1 + 16 * a) / (1 + 4 * a)).log())
    observed = torch.where(second > 0, first / second, EDGE_RATIO)
    edge = ((observed - ratio) / (EDGE_RATIO - ratio).clamp(min=0.05)).clamp(0, 1)
    edge = torch.where(ratio < EDGE_RATIO, edge, 0.0)
    return share + edge * (1 - share).clamp(min=0)
