"""Calibrate estimates to nats with Gaussian copulas, whose mutual information is known.

For `(X, Y)` normal with correlation rho, I = -1/2 log(1 - rho^2). The curve maps the mean estimate for such
variables, at the same M and options, to I. For other dependence it removes the bias that they have in common: the
offset for independent variables and the smoothing of a ridge.

Tables of atoms (`mikernels.atoms`) have no smoothing to correct. To `grid` and `kde` of independent variables chance
adds `(c - 1) (d - 1) / 2M` nats: Miller's bias of a table of c by d cells, where smoothed cells count as
`c = 1/M sum_i k(0) / mean_j k_ij`. That is removed from pairs with atoms, and the curve has the weight of the samples
that would lie outside of the atoms of both, if these were independent.

Source: G. A. Miller, Note on the bias of information estimates, in: H. Quastler (ed.), Information Theory in
Psychology, 1955, pp. 95-100.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.caches import cached
from mikernels.method import run_tiles
from mikernels.options import Precision, Problem
from mikernels.pairs import Block
from mikernels.tables.gaussian import gaussian_nats, tabulated_estimates
from mikernels.tables.node_shares import cells_of_levels, level_of
from mikernels.transforms import Variables, transform_samples

LEAST_SLOPE = 0.1
"""An estimate that rises by less than this per nat has saturated; beyond that point the slope of the curve is 1."""
SAMPLES = 2**15
"""Samples simulated for each point of a curve that is in no table; at least 4 and at most 256 draws of M."""


class Curve(NamedTuple):
    """A monotone map, linear between points and of slope 1 beyond them.

    Attributes:
        raw: `[P]` estimates, strictly increasing, float64.
        nats: `[P]` the information that they correspond to, starting at 0, on the same device.
    """

    raw: Tensor
    nats: Tensor

    def __call__(self, mi: Tensor) -> Tensor:
        """Map estimates of any shape and dtype, on the device of the curve, to nats."""
        raw, nats = self.raw, self.nats
        value = mi.double().contiguous()
        right = torch.searchsorted(raw, value).clamp(1, len(raw) - 1)
        slope = (nats[right] - nats[right - 1]) / (raw[right] - raw[right - 1])
        inside = nats[right - 1] + (value - raw[right - 1]) * slope
        below, above = value - raw[0] + nats[0], value - raw[-1] + nats[-1]
        mapped = torch.where(value < raw[0], below, torch.where(value > raw[-1], above, inside))
        return mapped.to(mi.dtype)


class Calibration:
    """The curve for the pairs of two sets of variables, and what pairs with atoms need besides."""

    def __init__(self, x: Variables, y: Variables, problem: Problem) -> None:
        self.curve = gaussian_curve(x.n_samples, problem, x.data.device)
        self.atoms = x.atoms is not None or y.atoms is not None
        if self.atoms:
            self.n_samples, self.counts = x.n_samples, problem.estimator in ("grid", "kde")
            self.shares = x.continuous_share, y.continuous_share
            self.cells = _cells(x, problem, self.curve), _cells(y, problem, self.curve)

    def __call__(self, block: Block) -> Tensor:
        """The block's estimates, mapped to nats."""
        row, col, raw = block
        if not self.atoms:
            return self.curve(raw)
        rows, cols = slice(row, row + raw.shape[0]), slice(col, col + raw.shape[1])
        weight = (self.shares[0][rows, None] * self.shares[1][cols]).float()
        if not self.counts:
            return raw.lerp(self.curve(raw), weight)
        chance = (self.cells[0][rows, None] - 1) * (self.cells[1][cols] - 1) / (2 * self.n_samples)
        chance = torch.where(weight < 1, chance, 0.0).float()
        # The curve expects the chance part of variables without atoms.
        with_usual = raw - torch.where(weight < 1, chance - self.curve.raw[0].float(), 0.0)
        return (raw - chance).lerp(self.curve(with_usual), weight)


def _cells(variables: Variables, problem: Problem, curve: Curve) -> Tensor:
    """As many cells as chance sees in each variable, `[N]` float64."""
    n_samples, atoms = variables.n_samples, variables.atoms
    if problem.estimator == "grid":
        smooth = cells_of_levels(n_samples, problem).to(variables.data.device)
    else:
        smooth = (1 + (2 * n_samples * curve.raw[:1].clamp(min=0)).sqrt()).expand(1)
    if atoms is None:
        return smooth[:1].expand(len(variables))
    level = level_of(atoms, problem.nodes) if problem.estimator == "grid" else torch.zeros_like(atoms.number)
    return atoms.number + torch.where(atoms.rest > 0, smooth[level], 0.0)


@cached(maxsize=32)
def gaussian_curve(n_samples: int, problem: Problem, device: torch.device) -> Curve:
    """The curve of an estimator at M samples under the rank transform. Cached.

    With the default bandwidth and number of nodes it comes from a table (`mikernels.tables.gaussian`). Otherwise it is
    simulated on `device`.
    """
    raw = tabulated_estimates(n_samples, problem)
    if raw is None:
        raw = simulated_estimates(n_samples, problem, device, min(256, max(4, SAMPLES // n_samples)))
    curve = _increasing(raw, gaussian_nats())
    return Curve(curve.raw.to(device), curve.nats.to(device))


def simulated_estimates(n_samples: int, problem: Problem, device: torch.device, draws: int) -> Tensor:
    """Mean estimates over `draws` draws of M samples, `[P]` (nats, float64, on the CPU), with a fixed seed.

    The torch implementation computes them, in exact integers if the estimator has them.
    """
    from mikernels import torch_impl

    precision: Precision = "int8" if problem.estimator in ("grid", "adaptive") else "fp32"
    nats = gaussian_nats()
    rho, rest = (-torch.expm1(-2 * nats)).sqrt(), (-nats).exp()
    generator = torch.Generator().manual_seed(0)
    raw, chance = torch.zeros_like(nats), torch.zeros_like(nats)
    for _ in range(draws):
        x, z = torch.randn(2, n_samples, 1, generator=generator, dtype=torch.float64)
        y = rho * x + rest * z
        left = transform_samples(x.to(device), "rank", seed=0)
        right = transform_samples(y.to(device), "rank", seed=1)
        blocks = run_tiles(torch_impl.method(problem, precision), left, right, None)
        raw += torch.cat([mi for _, _, mi in blocks], dim=1)[0].double().cpu() / draws
        chance += (y.square().mean(0) - z.square().mean(0)) / (2 * draws)
    # The mean log ratio of the draws deviates from I by chance, and the estimates follow as far as they rise with I:
    # not at all where they have saturated.
    slope = torch.gradient(raw, spacing=(nats,))[0].clamp_min(0)
    return raw - slope * chance


def _increasing(raw: Tensor, nats: Tensor) -> Curve:
    """Keep the points up to saturation, without those that noise put below an earlier point."""
    kept = [0]
    for i in range(1, len(raw)):
        rise = float(raw[i] - raw[kept[-1]])
        if rise > LEAST_SLOPE * float(nats[i] - nats[kept[-1]]):
            kept.append(i)
    if len(kept) < 2:
        raise ValueError(
            "calibrate: expected an estimate that grows with the dependence of Gaussian variables, got one that does "
            "not; choose another bandwidth or more samples"
        )
    return Curve(raw[kept], nats[kept])
