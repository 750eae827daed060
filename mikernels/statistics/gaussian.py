"""Conditional mutual information under the assumption of a Gaussian copula: one regression for all pairs.

Joint tables of three variables are no matrix product. If the normal scores of the variables are jointly Gaussian, the
conditional information is `-1/2 log(1 - r^2)` with their partial correlation r. It sees monotone dependence only.
"""

from typing import Any

import torch
from torch import Tensor

from mikernels.arrays import Samples, as_given
from mikernels.devices import require_float64
from mikernels.errors import SamplesValueError
from mikernels.frames import check_order
from mikernels.isolation import isolated
from mikernels.transforms import column_chunks, normal_scores
from mikernels.validation import as_samples, read_values

EXPLAINED = 1e-4
"""Of the norm of a variable: less than this is rounding, and the given variables determine it."""
RIDGE = 1e-9
"""Added to the correlations of the given variables, so that copies among them do no harm."""


def gaussian_conditional_information(
    x: Samples, given: Samples, *, device: torch.device | str | None = None
) -> Any:
    """Information that every pair of columns of `x [M, N]` shares beyond `given [M, K]`, in nats.

    Assumes a Gaussian copula: dependence that is not monotone is missed, and what a column of `given` says by other
    than monotone functions stays. Values are replaced by the normal scores of their ranks, equal ones by their mean, so
    that a binary column is removed whole.

    Args:
        x, device: see `mikernels.mutual_information`.
        given: the variables to condition on; fewer than M - 1.

    Returns:
        `[N, N]` float32, symmetric, as an array of the kind of `x`; infinite on the diagonal, and 0 for a column
        that is constant or that the given ones determine.

    Raises:
        TypeError, ValueError: see `mikernels.mutual_information`; ValueError for other numbers of samples, or too many
            variables to condition on.

    Source: T. M. Cover, J. A. Thomas, Elements of Information Theory, 2006, eq. 8.56, with the conditional covariance.
    """
    return as_given(_conditional(x, given, device), x)


@isolated()
def _conditional(x: Samples, given: Samples, device: torch.device | str | None) -> Tensor:
    check_order(x, given, "given")
    xs, zs = as_samples(x, "x", device), as_samples(given, "given", device)
    require_float64(xs.device)
    if len(zs) != len(xs):
        raise SamplesValueError(f"given: expected as many samples as in x ({len(xs)}), got {len(zs)}")
    if zs.shape[1] >= len(zs) - 1:
        raise SamplesValueError(
            f"given: expected fewer than {len(zs) - 1} variables (columns), got {zs.shape[1]}"
        )
    a, constant = _scores(read_values(xs, "x"))
    b, without = _scores(read_values(zs.to(xs.device), "given"))
    b = b[~without]
    within = b @ b.t()
    within.diagonal().add_(RIDGE)
    residual = a - torch.linalg.solve(within, b @ a.t()).t() @ b
    nothing_left = constant | (residual.norm(dim=1) < EXPLAINED)
    residual = _standard(residual)
    correlation = (residual @ residual.t()).clamp(-1, 1).fill_diagonal_(1.0)
    information = -0.5 * torch.log1p(-correlation.square())
    return information.masked_fill_(nothing_left[:, None] | nothing_left, 0.0).float()


def _scores(values: Tensor) -> tuple[Tensor, Tensor]:
    """The normal scores `[N, M]` of the ranks of each column of `values [M, N]`, standardized, and whether it is
    constant, `[N]`. Scores of equal values are their mean: at random they would hide what the values say."""
    n_samples, n = values.shape
    scores = torch.empty(n, n_samples, dtype=torch.float64, device=values.device)
    constant = torch.empty(n, dtype=torch.bool, device=values.device)
    score = normal_scores(n_samples).to(values.device)
    for columns in column_chunks(n, n_samples, values.device):
        ordered, order = values[:, columns].t().contiguous().sort(dim=1)
        run = torch.zeros_like(order)  # of equal values
        run[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
        each = score.expand(len(run), -1)
        zero = torch.zeros_like(scores[columns])
        mean = zero.scatter_add(1, run, each) / zero.scatter_add(1, run, torch.ones_like(each)).clamp(min=1)
        scores[columns] = _standard(torch.empty_like(mean).scatter_(1, order, mean.gather(1, run)))
        constant[columns] = run[:, -1] == 0
    return scores, constant


def _standard(scores: Tensor) -> Tensor:
    """Rows with mean 0 and norm 1."""
    centered = scores - scores.mean(1, keepdim=True)
    return centered / centered.norm(dim=1, keepdim=True)
