"""The order of `criterion="conditional-mi"`: backward elimination by conditional mutual information.

An order is `[N]` int64 and starts with the neuron to drop first. Dropping its first n neurons, for any n, gives nested
selections: one calibration serves every ratio.
"""

from typing import NamedTuple

import torch
from torch import Tensor

VARIANCE_RIDGE = 0.1
"""Share of each neuron's variance that is added to it. Copies and rank-deficient layers can be solved with much less,
but then neurons are dropped that others replace only on the calibration text."""
BLOCK = 64
"""Neurons to drop between two updates of the inverse and the projection by one matrix product."""


class Elimination(NamedTuple):
    """An order, and the damage of following it.

    Attributes:
        order: `[N]` int64.
        damage: `[N + 1]` float64, ascending: the share of the variance of the FFN's output that least squares on the
            kept neurons cannot restore after the first n neurons of the order were dropped.
    """

    order: Tensor
    damage: Tensor


def conditional_mi(covariance: Tensor, weight: Tensor) -> Elimination:
    """Repeatedly drop the neuron that tells least about the output given the kept ones.

    For Gaussian activations `z` and an output `y = W z` observed with noise of variance `s^2`, dropping neuron d from
    the kept set S costs the conditional mutual information

        I(z_d; y | z_S) = 1/2 log(1 + |w_d|^2 Var(z_d | z_S) / s^2)

    where `W` is, after every step, the least-squares projection of the kept neurons. It is monotone in
    `|w_d|^2 Var(z_d | z_S) = |w_d|^2 / (C^-1)_dd`, the increase of the squared error of the output. Hence the order
    does not depend on `s`, and the sum of these increases is the damage.

    Args:
        covariance: `C [N, N]` of the activations, on any device.
        weight: `W [d, N]` of the output projection.

    Cost: O(N^3 + d N^2) operations, in matrix-vector products and one matrix product per 64 neurons.

    Source: Hassibi, Stork, Second order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992; for whole
    columns, Meng et al., OSSCAR, arXiv 2403.12983. As conditional information: `benchmarks/quality`.
    """
    covariance, weight = covariance.float(), weight.detach().float()
    n_neurons, device = len(covariance), covariance.device
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)
    correlation = covariance / torch.outer(scale, scale)
    correlation.diagonal().add_(VARIANCE_RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlation))  # [N, N]
    weight = weight * deviation  # for neurons of unit variance; constant ones carry nothing
    total = torch.einsum("di,ij,dj->", weight, correlation, weight).double()

    # No neuron varies more once others are known: 1 / diagonal is at most its own variance. Half of that is a bound
    # that only rounding breaks, and it keeps the root from a negative number.
    floor = 0.5 / correlation.diagonal()
    diagonal = inverse.diagonal().maximum(floor)
    energy = weight.square().sum(0)  # |w_d|^2
    dropped = torch.zeros(n_neurons, dtype=torch.bool, device=device)
    order = torch.empty(n_neurons, dtype=torch.int64, device=device)
    increase = torch.empty(n_neurons, device=device)
    for start in range(0, n_neurons, BLOCK):
        width = min(BLOCK, n_neurons - start)
        # Within a block the current inverse is inverse - u u^T and the current projection is weight - v u^T.
        u, v = inverse.new_zeros(n_neurons, width), weight.new_zeros(len(weight), width)
        for i in range(width):
            cost = (energy / diagonal).masked_fill(dropped, torch.inf)
            d = cost.argmin()
            order[start + i], increase[start + i] = d, cost[d]
            root = diagonal[d].sqrt()
            column = (inverse[:, d] - u[:, :i] @ u[d, :i]) / root  # [N]
            lost = (weight[:, d] - v[:, :i] @ u[d, :i]) / root  # [d]
            overlap = lost @ weight - (lost @ v[:, :i]) @ u[:, :i].t()  # [N], w_j . lost
            energy = (energy - 2 * column * overlap + column.square() * lost.square().sum()).clamp_min(0)
            diagonal = (diagonal - column.square()).maximum(floor)
            u[:, i], v[:, i] = column, lost
            dropped[d] = True
            diagonal = diagonal.masked_fill(dropped, 1.0)
        inverse.addmm_(u, u.t(), alpha=-1)
        weight.addmm_(v, u.t(), alpha=-1)
    damage = torch.cat([increase.new_zeros(1), increase.clamp_min(0)]).double().cumsum(0)
    return Elimination(order, damage / total.clamp_min(1e-300))
