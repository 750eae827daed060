"""`adaptive`: a ladder of bandwidths, averaged with weights that suit the pair and extrapolated to bandwidth zero.

**Cells.** A normal score q falls into one of G equal cells of `Phi(q / 1.2)`, scaled from |q| <= 3.4 to [0, 1]:
cells are narrower in the tails than equal shares of the ranks, and wider there than equal steps of q. G is 4, 8,
... 512; since each number is twice the one before, finer cells nest in coarser ones.

**A rung** is a number of cells G and a bandwidth h of 1 or sqrt(2) cells. With `S(d) = exp(-d^2 / 2 h^2)` and with
(a_i, b_i) the cells of sample i,

    F_i = sum_j S(a_i - a_j) S(b_i - b_j),    m_i = sum_j S(a_i - a_j)

count the neighbors of a sample, itself as 1. The box that is equivalent to the kernel has twice the area of the
kernel's integral, so `f = 2 F` is close to a Poisson count of samples. `f - 2` of them are other samples, and
`psi(f - 1)` is an unbiased estimate of the logarithm of their expected number, as in nearest-neighbor estimators
[1, 2]. The mean log ratio of joint and margins on this rung, in nats, is

    V = 1/M sum_i [ psi(2 F_i - 1) - log(2 (M - 1)) - log(m_i(x) m_i(y) / M^2) ]

with `psi(x + 1) = 1/2 log((x + 1/2)^2 + 1/12)`, whose error is 0.03 at x = 0, 0.001 at x = 1, and O(x^-4).

**Atoms.** An atom (`mikernels.reference`) is a cell of its own. S is 1 within an atom, and 0 between it and any
other cell. The factor that turns F into a Poisson count is sqrt(2) for each axis on which the sample lies outside of
atoms: `f_i = c_i F_i` with c = 2, sqrt(2), or 1, of which c_i is the sample itself. Margins are counted like that as
well, `g_i = c_i m_i` with c = sqrt(2) outside of atoms and 1 in them. For a pair with atoms

    V = 1/M sum_i [ psi(f_i - c_i + 1) - psi(g_i(x) - c_i(x) + 1) - psi(g_i(y) - c_i(y) + 1) ] + log(M - 1)

If both variables are discrete, this is Grassberger's estimate for a table of counts [1].

**Choice.** V is also the leave-one-out log-likelihood of the density `F - 1` plus a floor, which stands for
`psi(1)`. After subtracting the logarithm of the mass that the floor adds, it tells how well a bandwidth predicts
unseen samples [3]. The estimate is a mean over the rungs, weighted by the square root of that likelihood. (The
maximum would jump between rungs, and the terms of neighboring samples are not independent.) Each rung contributes
the value of the next finer one, whose variance costs less than the bias of its own; but no value comes from a rung
whose box holds fewer than 6 samples in the geometric mean.

**Extrapolation.** Smoothing lowers V in two ways. A Gaussian ridge loses `1/2 log(1 + a)`, where a is proportional
to h^2; a sharp edge loses in proportion to h. Take V at h, 2 h, and 4 h. A ridge whose first difference
`d = V_1 - V_2` is `1/2 log((1 + 4 a) / (1 + a))` has lost `d` times the *share* `log(1 + a) / 2 d`, and its
differences have the *ratio* `2 d / log((1 + 16 a) / (1 + 4 a))`; an edge has share 1 and ratio 1/2. The observed
ratio `(V_1 - V_2) / (V_2 - V_3)` interpolates the share between the two. Cells grow with h, so the error that they
cause shrinks along with that of the kernel.

**Resolution.** Weak pairs need only the rungs from 32 cells down. Rungs of 64 cells are added around 0.1 nats, of
128, 256, and 512 around 0.7, 1.5, and 3 nats, and none before dependence is strong enough to fill their boxes.

1. P. Grassberger, Entropy estimates from insufficient samplings, arXiv physics/0307138.
2. A. Kraskov, H. Stoegbauer, P. Grassberger, Estimating mutual information, Phys. Rev. E 69 (2004),
   DOI 10.1103/PhysRevE.69.066138.
3. R. P. W. Duin, On the choice of smoothing parameters for Parzen estimators of probability density
   functions, IEEE Trans. Comput. 25 (1976), DOI 10.1109/TC.1976.1674577.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.options import Problem

RUNGS = [(512 >> halving, h) for halving in range(8) for h in (1.0, math.sqrt(2))]
"""Cells G and bandwidth h in cells, the finest first; the bandwidth doubles over two rungs."""

TAKEOVERS = {64: 0.1, 128: 0.7, 256: 1.5, 512: 3.0}
"""Nats around which the ladder that starts at so many cells takes over from the one before."""


class Rung(NamedTuple):
    """What one bandwidth says of one pair, in nats.

    Attributes:
        value: V.
        likelihood: V less the logarithm of the mass that the floor adds to the density.
        log_count: geometric mean of the number of samples in the equivalent box, as a logarithm.
    """

    value: float
    likelihood: float
    log_count: float


def adaptive(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """Estimate every pair on its own, in memory of a few `[M, M]` float64.

    Args:
        x, y: normal scores and atoms `[N, M]` and `[K, M]`, complex128 (`mikernels.reference`).
        problem: unused; this estimator has no parameters.

    Returns:
        `[N, K]` nats.
    """
    return x.real.new_tensor([[pair(a, b) for b in y] for a in x])


def pair(x: Tensor, y: Tensor) -> float:
    """Estimate one pair, from normal scores and atoms `[M]` and `[M]`."""
    n_samples = len(x)
    rungs = [smooth(x, y, cells, h) for cells, h in RUNGS]
    limit_of_ladder = 0.0
    if has_atoms(x) or has_atoms(y):
        limit_of_ladder = smooth(merged(x), merged(y), 1, 1.0).value

    def ladder_from(cells: int) -> float:
        return extrapolate(rungs[RUNGS.index((cells, 1.0)) :], n_samples, limit_of_ladder)

    value = ladder_from(32)
    for cells, nats in TAKEOVERS.items():
        limit = max(nats, math.log(6) - log_box(n_samples, cells, math.sqrt(2)))
        weight = clamp((value / limit - 1) / 0.7 + 0.5, 0, 1)  # from 0 to 1 between 0.65 and 1.35 limits
        value += weight * (ladder_from(cells) - value)
    return value


def has_atoms(x: Tensor) -> bool:
    return bool((x.imag > 0).any())


def merged(x: Tensor) -> Tensor:
    """`x` with all samples outside of atoms in one more atom."""
    return torch.where(x.imag > 0, x, (x.imag.max() + 1) * 1j)


def smooth(x: Tensor, y: Tensor, cells: int, h: float) -> Rung:
    """V of one pair on one rung, with what decides whether the rung is used."""
    if has_atoms(x) or has_atoms(y):
        return smooth_with_atoms(x, y, cells, h)
    n_samples = len(x)
    a, b = cell(x.real, cells), cell(y.real, cells)
    place = torch.arange(cells, dtype=torch.float64, device=x.device)
    kernel = torch.exp(-0.5 * ((place[:, None] - place) / h).square())  # S(a - b), [G, G]
    kernel_x, kernel_y = kernel[a], kernel[b]  # [M, G]
    neighbors_x, neighbors_y = kernel_x[:, a], kernel_y[:, b]  # S(a_i - a_j) and S(b_i - b_j), [M, M]
    f = 2 * (neighbors_x * neighbors_y).sum(1)
    margins = neighbors_x.sum(1) * neighbors_y.sum(1) / n_samples**2
    value = float((psi(f - 1) - math.log(2 * (n_samples - 1)) - margins.log()).mean())
    # The floor is sqrt(1/12) in each of the G^2 cells. The density sums to `mass` if the variables are independent:
    # somewhat less than M times the integral of a kernel, since cells end at 0 and G.
    mass = n_samples * float(kernel_x.sum(1).mean() * kernel_y.sum(1).mean())
    likelihood = value - math.log1p(math.sqrt(1 / 12) * cells**2 / mass)
    return Rung(value, likelihood, value + log_box(n_samples, cells, h))


def smooth_with_atoms(x: Tensor, y: Tensor, cells: int, h: float) -> Rung:
    """`smooth` for a pair with atoms."""
    n_samples = len(x)
    place = torch.arange(cells, dtype=torch.float64, device=x.device)
    kernel = torch.exp(-0.5 * ((place[:, None] - place) / h).square())
    neighbors, own, margins, log_floor = [], [], 0.0, math.log(math.sqrt(1 / 12) / n_samples)
    for v in (x, y):
        a, outside = cell(v.real, cells), v.imag == 0
        neighbors.append(torch.where(outside[:, None], kernel[a][:, a], 1.0) * (v.imag[:, None] == v.imag))
        own.append(torch.where(outside, math.sqrt(2), 1.0))
        margins += float(psi(own[-1] * neighbors[-1].sum(1) - own[-1] + 1).mean())
        number = float(v.imag.max()) + cells * bool(outside.any())  # of cells
        mass = float(torch.where(outside, kernel[a].sum(1), 1.0).mean())
        log_floor += math.log(number / mass)
    c = own[0] * own[1]
    log_count = float(psi(c * (neighbors[0] * neighbors[1]).sum(1) - c + 1).mean())
    value = log_count - margins + math.log(n_samples - 1)
    return Rung(value, value - math.log1p(math.exp(log_floor)), log_count)


def psi(x: Tensor) -> Tensor:
    """The digamma function for x >= 1, with the error that the equations above give."""
    return 0.5 * ((x - 0.5).square() + 1 / 12).log()


def cell(scores: Tensor, cells: int) -> Tensor:
    """Cell of each normal score `[M]`: int64 from 0 to G - 1."""
    low, high = torch.special.ndtr(scores.new_tensor([-3.4, 3.4]) / 1.2)
    place = (torch.special.ndtr(scores.clamp(-3.4, 3.4) / 1.2) - low) / (high - low)
    return (place * cells).long().clamp(max=cells - 1)


def log_box(n_samples: int, cells: int, h: float) -> float:
    """Logarithm of the number of samples in the equivalent box, for independent variables."""
    return math.log(4 * math.pi * h**2 * n_samples / cells**2)


def extrapolate(ladder: list[Rung], n_samples: int, limit: float = 0.0) -> float:
    """The weighted mean over the rungs of a ladder of what each extrapolates to; `limit`: V of a single cell."""
    last = len(ladder) - 1
    filled = [i for i in range(last) if ladder[i].log_count >= math.log(6)]
    finest = filled[0] if filled else last
    highest = max(rung.likelihood for rung in ladder)
    weights = [math.exp(0.5 * n_samples * (rung.likelihood - highest)) for rung in ladder]
    # Beyond the ladder there is one cell outside of atoms; V is 0 if there are no atoms.
    values = [rung.value for rung in ladder] + [limit] * 4
    total = 0.0
    for i, weight in enumerate(weights):
        source = max(i - 1, finest)
        first, second = values[source] - values[source + 2], values[source + 2] - values[source + 4]
        total += weight * (values[source] + first * lost_share(first, second))
    return total / sum(weights)


def lost_share(first: float, second: float) -> float:
    """What smoothing has cost, in units of the first difference; `second` is that of twice the bandwidth.

    Pure noise has no ridge: the share is never below 1/2, though the limit for a smooth ridge is 1/3. Noise also
    raises the ratio, so an edge is assumed from 0.55 on.
    """
    growth = math.exp(2 * clamp(first, 1e-4, math.log(2) - 0.01))  # (1 + 4 a) / (1 + a), from 1 to 4
    a = min((growth - 1) / (4 - growth), 1)
    d = 0.5 * math.log((1 + 4 * a) / (1 + a))
    share = max(math.log(1 + a) / (2 * d), 0.5)
    ratio = 2 * d / math.log((1 + 16 * a) / (1 + 4 * a))
    if ratio >= 0.55 or share >= 1:
        return share
    observed = first / second if second > 0 else 0.55
    edge = clamp((observed - ratio) / max(0.55 - ratio, 0.05), 0, 1)
    return share + edge * (1 - share)


def clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
