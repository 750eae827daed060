"""How many neurons each layer keeps, so that the model as a whole loses least."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Budget = Literal["uniform", "mi", "kl"]


def uniform_width(width: int, ratio: float, multiple_of: int) -> int:
    """Neurons that stay in each layer of `width`: the multiple nearest to what the ratio asks for.

    Raises:
        ValueError: rounding leaves all of them or none.
    """
    n_keep = round(width * (1 - ratio) / multiple_of) * multiple_of
    if not 0 < n_keep < width:
        raise ValueError(
            f"ratio: {ratio} of {width} neurons, rounded to a multiple of {multiple_of}, keeps {n_keep}; "
            f"expected some to stay and some to go: choose another ratio or a smaller multiple_of"
        )
    return n_keep


def allocate(
    damage: Sequence[Tensor],
    sensitivity: Sequence[float],
    *,
    ratio: float,
    multiple_of: int,
    max_layer_ratio: float,
) -> list[int]:
    """Widths that minimise the predicted damage of the whole model.

    The damage of a layer is `sensitivity x damage(n) / damage(N / 2)` when n of its N neurons go. Steps of
    `multiple_of` neurons go where they cost least, which is optimal while the curves are convex; curves of
    backward elimination nearly are.

    Args:
        damage: for each layer `[N + 1]`, ascending, of `pruning.choose.criteria.conditional_mi`; N is the same in all.
        sensitivity: for each layer what halving it does to the model, in any unit; not negative.
        ratio: share of all neurons that goes.
        max_layer_ratio: cap on the share that goes from one layer.

    Returns:
        Neurons that stay in each layer. Their sum is that of the uniform layout.

    Raises:
        ValueError: a ratio that rounding or the cap makes unreachable.
    """
    width = len(damage[0]) - 1
    drops = _steps(width, ratio, multiple_of, max_layer_ratio)
    uniform = drops.index(width - uniform_width(width, ratio, multiple_of))
    cost = torch.stack(
        [
            s * curve.cpu()[drops] / curve[width // 2].clamp_min(1e-300).cpu()
            for s, curve in zip(sensitivity, damage, strict=True)
        ]
    )  # [layers, steps]
    marginal = torch.cat([cost.diff(dim=1), cost.new_full((len(cost), 1), torch.inf)], dim=1)
    taken = [0] * len(cost)
    head = marginal[:, 0].clone()  # the cost of the next step of each layer
    for _ in range(uniform * len(cost)):
        layer = int(head.argmin())
        taken[layer] += 1
        head[layer] = marginal[layer, taken[layer]]
    return [width - drops[n] for n in taken]


def check_cap(width: int, ratio: float, multiple_of: int, max_layer_ratio: float) -> None:
    """Raise unless a layer may lose as much as the ratio asks of all.

    Raises:
        ValueError: as `allocate`.
    """
    _steps(width, ratio, multiple_of, max_layer_ratio)


def _steps(width: int, ratio: float, multiple_of: int, max_layer_ratio: float) -> list[int]:
    """The numbers of neurons that may go from a layer: what stays is all, or a multiple."""
    n_drop = width - uniform_width(width, ratio, multiple_of)
    most = int(max_layer_ratio * width)
    drops = [0, *range((width - 1) % multiple_of + 1, most + 1, multiple_of)]
    if drops[-1] < n_drop:
        raise ValueError(
            f"max_layer_ratio: {max_layer_ratio} of {width} neurons lets {drops[-1]} of a layer go, rounded to a "
            f"multiple of {multiple_of}; expected at least the {n_drop} that ratio={ratio} asks for"
        )
    return drops
