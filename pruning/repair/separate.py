"""Repairing each FFN on its own, in closed form, from the moments of its activations in the dense model."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pruning.model.ffn import FFN
from pruning.model.surgery import Cut, Solution, complement, prune_ffns
from pruning.observe.capture import Statistics
from pruning.repair.ridge import adapted_ridge
from pruning.settings import Repair

Moments = Callable[[Tensor, Tensor], Tensor]
"""Of some neurons with others: `[rows, columns]` float64."""


def prune_separately(
    ffns: Sequence[FFN],
    kept: Iterable[Tensor],
    statistics: Iterable[Statistics],
    repair: Repair,
) -> list[float]:
    """Prune and repair the FFNs in place: all of them, or none if one cannot be repaired.

    An existing bias is refitted; only `repair="bias"` adds one.

    Args:
        kept: for each FFN the neurons to keep, ascending.
        repair: see `repair_projection`.

    Returns:
        The error of each FFN (`Solution`).

    Raises:
        ValueError: see `repair_projection`.
    """
    cuts = []
    for ffn, keep, activations in zip(ffns, kept, statistics, strict=True):
        weight, bias = ffn.output.weight, ffn.output.bias
        intercept = repair == "bias" or bias is not None
        way: Repair = repair if activations.is_enough else "none"
        solution = repair_projection(weight, bias, keep, activations, way, intercept=intercept)
        if activations.is_enough:
            solution = solution._replace(error=output_error(weight, bias, keep, solution, activations))
        cuts.append(Cut(ffn, keep, solution.to(weight.dtype)))
    prune_ffns(cuts)
    return [cut.solution.error for cut in cuts]


def repair_projection(
    weight: Tensor,
    bias: Tensor | None,
    keep: Tensor,
    statistics: Statistics,
    repair: Repair,
    *,
    intercept: bool,
) -> Solution:
    """The output projection of the kept neurons, in float64.

    Args:
        weight: `[d, N]` of the dense projection; `bias`: `[d]` or None.
        keep: indices of the neurons to keep.
        repair: `"none"` only removes the columns of the dropped neurons. `"bias"` also adds their mean contribution.
            `"lstsq"` predicts the dropped neurons from the kept ones by ridge regression over the calibration
            tokens and folds the prediction into the kept columns.
        intercept: whether the result may have a bias; without one, `"lstsq"` regresses through the origin.

    Raises:
        ValueError: `"bias"` without `intercept`.
    """
    weight = weight.detach().double()
    new_bias = None if bias is None else bias.detach().double()
    drop = complement(keep, weight.shape[1])
    kept_weight, dropped_weight = weight[:, keep], weight[:, drop]
    if repair == "none" or len(drop) == 0:
        return Solution(kept_weight, new_bias)
    if repair == "bias":
        if not intercept:
            raise ValueError(
                "repair: expected a projection that can store a bias for repair='bias', got none"
            )
        return Solution(kept_weight, _add(new_bias, dropped_weight @ statistics.mean[drop]))
    if not intercept:
        change = _replacement(dropped_weight, statistics.second_moment, keep, drop, statistics.n_tokens)
        return Solution(kept_weight + change, new_bias)
    change = _replacement(dropped_weight, statistics.covariance_of, keep, drop, statistics.n_tokens)
    constant = dropped_weight @ statistics.mean[drop] - change @ statistics.mean[keep]
    return Solution(kept_weight + change, _add(new_bias, constant))


def _replacement(
    dropped_weight: Tensor, moments: Moments, keep: Tensor, drop: Tensor, n_tokens: int
) -> Tensor:
    """What the kept neurons must add to the output in place of the dropped ones, `[d, kept]` float64."""
    cross = moments(keep, drop) @ dropped_weight.t()
    energy = float(((dropped_weight @ moments(drop, drop)) * dropped_weight).sum())
    return adapted_ridge(moments(keep, keep), cross, energy, n_tokens).t()


def output_error(
    weight: Tensor, bias: Tensor | None, keep: Tensor, solution: Solution, statistics: Statistics
) -> float:
    """The mean square of the error of the output with the solution, relative to that of the dense output.

    Args:
        weight, bias: of the dense projection.
        keep: the kept neurons, which the solution is for.
    """
    weight, covariance = weight.detach().float(), statistics.covariance
    change = weight.index_add(1, keep, solution.weight.float(), alpha=-1)  # [d, N]
    offset = torch.zeros_like(statistics.mean[:1]) if bias is None else bias.detach().double()
    lost = offset if solution.bias is None else offset - solution.bias.double()

    def mean_square(projection: Tensor, constant: Tensor) -> float:
        varying = (projection @ covariance * projection).sum(dtype=torch.float64)
        return float(varying + (projection.double() @ statistics.mean + constant).square().sum())

    total = mean_square(weight, offset)
    return mean_square(change, lost) / total if total else math.nan


def _add(bias: Tensor | None, change: Tensor) -> Tensor:
    return change if bias is None else bias + change
