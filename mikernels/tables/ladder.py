"""`adaptive`: a ladder of bandwidths, weighted for each pair, extrapolated to bandwidth zero. In float64.

**Cells.** Rank r of M is a normal score q, then `Phi(q / 1.2)` scaled to [0, 1]: narrower cells than equal
shares of the ranks in the tails, wider than equal steps of q. A pair becomes counts `n [G, G]`, G = 32, and
by adding 2 x 2 cells G / 2, ... 4. Under the rank transform the margins are the same for every variable.

**A rung** is a number of cells G and a bandwidth h of 1 or sqrt(2) cells, `S_ab = exp(-(a - b)^2 / 2 h^2)`.
`F = S n S` at a sample counts its neighbours, itself as 1. The area of the kernel's equivalent box is twice its
integral, so that `f = 2 F` counts about a Poisson number of samples, `f - 2` of them others, whose expected
logarithm is free of bias when taken as `psi(f - 1)`, as in the nearest-neighbour estimators [1, 2]:

    V = 1/M sum_ab n_ab [ psi(f_ab - 1) - log(2 (M - 1)) - log(m_a m_b / M^2) ],   m = S n_x   (log ratio, nats)

with `psi(x + 1) = 1/2 log((x + 1/2)^2 + 1/12)`, right to 0.03 at x = 0, 0.001 at 1 and O(x^-4).

**Choice.** V is also the leave-one-out likelihood of the density `F - 1` plus a floor that stands for `psi(1)`;
less the logarithm of the mass that the floor adds it says how well a bandwidth predicts [3]. The estimate is the
mean over the rungs, weighted by the square root of that likelihood (a maximum would jump between rungs; the
terms of neighbours are not independent), of what the next finer rung gives, since its variance costs less than
its bias; but of none whose box holds fewer than 6 samples in the (geometric) mean.

**Extrapolation.** What smoothing costs V is of two kinds. A Gaussian ridge loses `1/2 log(1 + a)`, a in proportion
to h^2; a sharp edge loses in proportion to h. With V at h, 2 h and 4 h, a ridge whose first difference
`d = V_1 - V_2` is `1/2 log((1 + 4 a) / (1 + a))` has lost `d` times the *share* `log(1 + a) / 2 d`, and its
differences have the *ratio* `2 d / log((1 + 16 a) / (1 + 4 a))`; an edge has the share 1 and the ratio 1/2.
Between the two the share is interpolated by the ratio that is seen, `(V_1 - V_2) / (V_2 - V_3)`. Cells grow with
h, so that their part of the error goes with it.

**Resolution.** 32 cells do for weak pairs. Around 0.1 nats 64 take over, around 0.7, 1.5 and 3 nats 128, 256 and
512, and none before dependence is so strong that their boxes are filled.

1. P. Grassberger, Entropy estimates from insufficient samplings, arXiv physics/0307138.
2. A. Kraskov, H. Stoegbauer, P. Grassberger, Estimating mutual information, Phys. Rev. E 69 (2004),
   DOI 10.1103/PhysRevE.69.066138.
3. R. P. W. Duin, On the choice of smoothing parameters for Parzen estimators of probability density
   functions, IEEE Trans. Comput. 25 (1976), DOI 10.1109/TC.1976.1674577.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.transforms import normal_scores

CELLS = (32, 64, 128, 256, 512)
"""Each twice the one before, so that finer cells nest in coarser ones."""
LIMITS = (0.1, 0.7, 1.5, 3.0)
"""Nats above which the next number of cells takes over, where M fills them.

What the first one saves costs weak dependence with sharp edges 0.006 nats at M = 8000, 0.008 at 32,000.
"""
OVERLAP = 0.35
"""Share of a limit on either side of it over which it does so."""
COARSEST = 4

WARP = 1.2
REACH = 3.4
BANDWIDTHS = (1.0, math.sqrt(2))
"""In cells; two to each halving of the cells, so that bandwidths double over two rungs."""
LEAST_COUNT = 6.0
LIKELIHOOD_POWER = 0.5
LEAST_SHARE = 0.5
"""Of the first difference that is added; smooth ridges alone would have 1/3, but none is seen free of noise."""
EDGE_RATIO = 0.55
"""Ratio of differences that is taken for an edge, somewhat above 1/2 since noise raises it."""


class Rung(NamedTuple):
    """One bandwidth, with what depends on nothing but M.

    Attributes:
        cells: G.
        kernel: sqrt(2) S, so that `f = kernel n kernel`: `[G, G]` float64 on the CPU.
        margin: what the margins and constants take off `1/M sum n psi`, nats.
        excess: logarithm of the mass that the floor adds to the density, nats.
        log_box: logarithm of the samples in the equivalent box for independent variables.
    """

    cells: int
    kernel: Tensor
    margin: float
    excess: float
    log_box: float


@functools.lru_cache(maxsize=8)
def cell_of_rank(n_samples: int, cells: int) -> Tensor:
    """Cell of each rank, `[M]` int64 on the CPU, 0 to cells - 1."""
    score = normal_scores(n_samples).clamp(-REACH, REACH)
    low, high = torch.special.ndtr(torch.tensor([-REACH, REACH], dtype=torch.float64) / WARP)
    place = (torch.special.ndtr(score / WARP) - low) / (high - low)
    return (place * cells).long().clamp(0, cells - 1)


@functools.lru_cache(maxsize=8)
def rungs(n_samples: int, cells: int) -> tuple[Rung, ...]:
    """The ladder that starts at `cells`, the finest first."""
    ladder = []
    counts = torch.bincount(cell_of_rank(n_samples, cells), minlength=cells).double()
    while cells >= COARSEST:
        place = torch.arange(cells, dtype=torch.float64)
        for h in BANDWIDTHS:
            kernel = torch.exp(-0.5 * ((place[:, None] - place) / h).square())
            smooth = kernel @ counts
            margin = 2 * float(torch.special.xlogy(counts, smooth).sum()) / n_samples - 2 * math.log(
                n_samples
            )
            mass = (float(smooth.sum()) / n_samples) ** 2 * n_samples
            ladder.append(
                Rung(
                    cells,
                    math.sqrt(2) * kernel,
                    margin + math.log(2 * (n_samples - 1)),
                    math.log1p(math.sqrt(1 / 12) * cells**2 / mass),
                    math.log(4 * math.pi * h**2 * n_samples / cells**2),
                )
            )
        counts = counts.view(-1, 2).sum(1)
        cells //= 2
    return tuple(ladder)


def mutual_information(x: Tensor, y: Tensor) -> Tensor:
    """`[N, K]` nats, float64, of ranks `x [N, M]` and `y [K, M]` (0..M-1)."""
    return torch.stack([torch.stack([_pair(a, b) for b in y]) for a in x])


def _pair(x: Tensor, y: Tensor) -> Tensor:
    values = []
    for cells in CELLS:
        cell = cell_of_rank(len(x), cells).to(x.device)
        counts = torch.zeros(cells, cells, dtype=torch.float64, device=x.device)
        counts.index_put_((cell[x.long()], cell[y.long()]), counts.new_ones(()), accumulate=True)
        ladder = rungs(len(x), cells)
        ratios = []
        for rung in ladder:
            if rung.cells < len(counts):
                counts = counts.view(rung.cells, 2, rung.cells, 2).sum((1, 3))
            kernel = rung.kernel.to(x.device)
            ratios.append((counts * psi(kernel @ counts @ kernel)).sum() / len(x) - rung.margin)
        values.append(extrapolated(torch.stack(ratios), ladder, len(x)))
    return refined(values, len(x))


def psi(f: Tensor) -> Tensor:
    """`psi(f - 1)`, f counting a sample itself as 2."""
    return 0.5 * ((f - 1.5).square() + 1 / 12).log()


def extrapolated(ratios: Tensor, ladder: tuple[Rung, ...], n_samples: int) -> Tensor:
    """The estimate `[...]` from V on every rung of a ladder, `[rungs, ...]` nats."""
    last, step = len(ladder) - 1, len(BANDWIDTHS)

    def column(values: list[float]) -> Tensor:
        return ratios.new_tensor(values).view(-1, *[1] * (ratios.ndim - 1))

    likelihood = ratios - column([rung.excess for rung in ladder])
    filled = ratios + column([rung.log_box for rung in ladder]) >= math.log(LEAST_COUNT)
    filled[last] = True
    finest = filled.to(torch.uint8).argmax(0)  # the first that is filled
    # Beyond the ladder all is one cell, and V = 0.
    padded = torch.cat([ratios, ratios.new_zeros(2 * step, *ratios.shape[1:])])
    halvings = padded[:-step] - padded[step:]  # differences of V to twice the bandwidth
    values = ratios + halvings[:-step] * _share(halvings[:-step], halvings[step:])
    finer = (torch.arange(last + 1, device=ratios.device) - 1).view(-1, *[1] * finest.ndim).maximum(finest)
    weight = torch.softmax(LIKELIHOOD_POWER * n_samples * likelihood, dim=0)
    return (weight * values.gather(0, finer)).sum(0)


def _share(d: Tensor, earlier: Tensor) -> Tensor:
    """What of the difference d of the last halving of h is to be added for all the halvings to come."""
    growth = torch.exp(2 * d.clamp(1e-4, math.log(2) - 0.01))  # (1 + 4 a) / (1 + a), from 1 to 4
    a = ((growth - 1) / (4 - growth)).clamp(max=1)
    change = 0.5 * ((1 + 4 * a) / (1 + a)).log()
    share = (0.5 * a.log1p() / change).clamp(min=LEAST_SHARE)
    ratio = change / (0.5 * ((1 + 16 * a) / (1 + 4 * a)).log())
    seen = torch.where(earlier > 0, d / earlier, EDGE_RATIO)
    edge = ((seen - ratio) / (EDGE_RATIO - ratio).clamp(min=0.05)).clamp(0, 1)
    edge = torch.where(ratio < EDGE_RATIO, edge, 0.0)
    return share + edge * (1 - share).clamp(min=0)


def limits(n_samples: int) -> list[float]:
    """`LIMITS`, or the nats at which a box of the finer cells holds enough of M samples, where that is more."""
    filled = [math.log(LEAST_COUNT) - rungs(n_samples, cells)[1].log_box for cells in CELLS[1:]]
    return [max(pair) for pair in zip(LIMITS, filled, strict=True)]


def refined(values: list[Tensor], n_samples: int) -> Tensor:
    """One value of those at `CELLS`, each taking over from the one before where that exceeds its limit."""
    value = values[0]
    for limit, finer in zip(limits(n_samples), values[1:], strict=True):
        value = value.lerp(finer, takeover(value, limit))
    return value


def takeover(value: Tensor, limit: float) -> Tensor:
    """Weight of the finer estimate, 0 to 1."""
    return ((value / limit - 1) / (2 * OVERLAP) + 0.5).clamp(0, 1)
