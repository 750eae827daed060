"""The output projection of a pruned FFN, in closed form from the moments of its input."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pruning.observe.capture import Statistics

Repair = Literal["none", "bias", "lstsq", "sequential"]

RIDGE = 0.01
"""Share of each kept neuron's own second moment that is added to it, so that the scale of no neuron, however
massive, matters to the others."""


class Projection(NamedTuple):
    """What replaces the output projection: `weight [d, kept]`, `bias [d]` or None."""

    weight: Tensor
    bias: Tensor | None

    def to(self, dtype: torch.dtype) -> "Projection":
        return Projection(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def repair_projection(
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    statistics: Statistics,
    repair: Repair,
    *,
    intercept: bool,
) -> Projection:
    """The projection of the kept neurons, in float64.

    Args:
        weight: `[d, N]` of the dense projection, `bias [d]` or None.
        keep: indices of the neurons that stay.
        repair: `"none"` cuts the dropped columns out. `"bias"` adds what they contributed on average.
            `"lstsq"` predicts the dropped neurons from the kept ones by ridge regression over the
            calibration tokens and folds the prediction into the kept columns.
        intercept: whether there is a bias to write to; without one, `"lstsq"` regresses through the origin.

    Raises:
        ValueError: `"bias"` without `intercept`.
    """
    weight = weight.detach().double()
    new_bias = None if bias is None else bias.detach().double()
    drop = complement(keep, weight.shape[1])
    kept_weight, dropped_weight = weight[:, keep], weight[:, drop]
    if repair == "none" or len(drop) == 0:
        return Projection(kept_weight, new_bias)
    if repair == "bias":
        if not intercept:
            raise ValueError("repair='bias': expected a projection that can store a bias, this class cannot")
        return Projection(kept_weight, _add(new_bias, dropped_weight @ statistics.mean[drop]))
    if not intercept:
        prediction = predict(statistics.second_moment, keep, drop)
        return Projection(kept_weight + dropped_weight @ prediction, new_bias)
    prediction = predict(statistics.covariance.double(), keep, drop)
    constant = statistics.mean[drop] - prediction @ statistics.mean[keep]
    return Projection(kept_weight + dropped_weight @ prediction, _add(new_bias, dropped_weight @ constant))


def predict(moments: Tensor, keep: Tensor, drop: Tensor) -> Tensor:
    """Ridge coefficients `[dropped, kept]` of the dropped neurons on the kept ones.

    Args:
        moments: `[N, N]` float64, second moments or covariances.
    """
    return ridge(moments[keep][:, keep], moments[keep][:, drop], RIDGE).t()


def ridge(gram: Tensor, cross: Tensor, strength: float, *, n_free: int = 0) -> Tensor:
    """Coefficients `[k, d]` float64 of a ridge regression on k regressors, in units where each has a moment of 1.

    Args:
        gram: `[k, k]`, (second) moments of the regressors.
        cross: `[k, d]`, with what is predicted.
        strength: share of each regressor's own moment that is added to it.
        n_free: so many of the last regressors, such as a constant, are not penalised.
    """
    gram, cross = gram.double(), cross.double()
    scale = gram.diagonal().clamp_min(0).sqrt()
    scale = scale.masked_fill(scale == 0, 1.0)  # silent neurons predict nothing
    system = gram / torch.outer(scale, scale)
    system.diagonal()[: len(system) - n_free] += strength
    return torch.cholesky_solve(cross / scale[:, None], torch.linalg.cholesky(system)) / scale[:, None]


def explained_variance(statistics: Statistics, keep: Tensor, drop: Tensor) -> Tensor:
    """Linear R^2 of each dropped neuron on the kept ones, `[dropped]` in [0, 1].

    Over the calibration tokens, adjusted for the number of kept neurons: independent neurons have about 0,
    also where there are few tokens.
    """
    covariance = statistics.covariance.double()
    b = predict(covariance, keep, drop)
    cross = (b * covariance[drop][:, keep]).sum(1)
    fit = (b @ covariance[keep][:, keep] * b).sum(1)
    unexplained = 1 - (2 * cross - fit) / covariance.diagonal()[drop].clamp_min(1e-300)
    spare = max(statistics.n_tokens - len(keep) - 1, 1)
    return (1 - unexplained * (statistics.n_tokens - 1) / spare).clamp(0.0, 1.0)


def complement(indices: Tensor, length: int) -> Tensor:
    """All of 0..length-1 that are not in `indices`, ascending."""
    absent = torch.ones(length, dtype=torch.bool, device=indices.device)
    absent[indices] = False
    return absent.nonzero().flatten()


def _add(bias: Tensor | None, change: Tensor) -> Tensor:
    return change if bias is None else bias + change
