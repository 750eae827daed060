"""Ridge regression from moments."""

import torch
from torch import Tensor


def ridge(gram: Tensor, cross: Tensor, strength: float, *, n_free: int = 0) -> Tensor:
    """Coefficients `[k, d]` float64 of a ridge regression on k regressors, each scaled to a second moment of 1.

    The scaling makes the regression independent of the units of the regressors: no neuron, however massive, affects
    the penalty of the others.

    Args:
        gram: `[k, k]`, moments of the regressors.
        cross: `[k, d]`, moments of the regressors with the targets.
        strength: the penalty, relative to each regressor's own moment.
        n_free: do not penalize this many of the last regressors, such as a constant.
    """
    scale = gram.diagonal().double().clamp_min(0).sqrt()
    scale = scale.masked_fill(scale == 0, 1.0)  # silent neurons predict nothing
    system = torch.outer(scale, scale)
    torch.div(gram, system, out=system)
    system.diagonal()[: len(system) - n_free] += strength
    # In place, since these are the largest matrices of a run: LAPACK does so for columns, which the transpose has.
    root = system.t()
    torch.linalg.cholesky(root, out=root)
    solution = torch.linalg.solve_triangular(root, cross.double().div(scale[:, None]), upper=False)
    return torch.linalg.solve_triangular(root.t(), solution, upper=True).div_(scale[:, None])
