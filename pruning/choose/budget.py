"""How many neurons each layer keeps, so that the whole model loses least."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.model.ffn import FFN
from pruning.settings import Settings

SUPERBLOCK, BLOCK = 256, 32
"""Widths of GGUF's formats: k-quants such as Q4_K need rows of multiples of 256, Q8_0 and Q4_0 of 32."""
MAX_SHIFT = 0.02
"""By how much rounding to `SUPERBLOCK` may move the ratio, by default."""


def rounding(width: int, ratio: float, multiple_of: int | None) -> int:
    """The multiple that a uniform width is rounded to. None stands for `SUPERBLOCK` where the dense width is a multiple
    of it and the rounding moves the ratio by less than `MAX_SHIFT`, otherwise for `BLOCK`."""
    if multiple_of is not None:
        return multiple_of
    n_keep = _nearest(width, ratio, SUPERBLOCK)
    close = abs(1 - n_keep / width - ratio) < MAX_SHIFT
    return SUPERBLOCK if width % SUPERBLOCK == 0 and 0 < n_keep < width and close else BLOCK


def uniform_width(width: int, ratio: float, multiple_of: int | None) -> int:
    """Neurons to keep in a layer of `width`: the multiple (see `rounding`) nearest to `width * (1 - ratio)`.

    Raises:
        ValueError: rounding keeps all neurons or none.
    """
    multiple_of = rounding(width, ratio, multiple_of)
    n_keep = _nearest(width, ratio, multiple_of)
    if not 0 < n_keep < width:
        raise ValueError(
            f"ratio: expected to keep between 0 and {width} neurons (exclusive), got {n_keep} for ratio={ratio} "
            f"rounded to a multiple of {multiple_of}; use another ratio or a smaller multiple_of"
        )
    return n_keep


def least_multiple(settings: Settings) -> int:
    """The multiple that widths are rounded to by budgets that differ by layer, and at least by the uniform one."""
    return settings.multiple_of or BLOCK


def kept_width(ffn: FFN, ratio: float, settings: Settings) -> int:
    """Neurons to keep in an FFN if all lose the same share; budgets that differ by layer keep as many in all. The
    config entry that sets its width is rounded.

    Raises:
        ValueError: see `uniform_width`.
    """
    entry = int(ffn.width / ffn.scale)
    multiple_of = settings.multiple_of if settings.budget == "uniform" else least_multiple(settings)
    step = math.lcm(rounding(entry, ratio, multiple_of), ffn.knob.step)
    return int(ffn.scale * uniform_width(entry, ratio, step))


def allocate(
    damage: Sequence[Tensor],
    sensitivity: Sequence[float],
    *,
    width: int,
    ratio: float,
    multiple_of: int,
    max_layer_ratio: float,
) -> list[int]:
    """The widths that minimize the predicted damage to the whole model.

    Dropping n of the N neurons of a layer is predicted to cost `sensitivity x damage(n) / damage(N / 2)`. Steps of
    `multiple_of` neurons are dropped greedily where they cost least, which is optimal for convex curves; the curves
    of backward elimination are nearly convex.

    Args:
        damage: for each layer, ascending, see `pruning.choose.elimination.conditional_mi`; at least to half of the
            neurons and to the cap.
        sensitivity: for each layer the non-negative cost of halving it, in any unit.
        width: N, the same in all layers.
        ratio: share of all neurons to drop.
        max_layer_ratio: largest share to drop from one layer.

    Returns:
        Neurons to keep in each layer. Their sum is that of the uniform budget.

    Raises:
        ValueError: rounding or the cap makes the ratio unreachable.
    """
    drops = _drop_counts(width, ratio, multiple_of, max_layer_ratio)
    uniform = drops.index(width - uniform_width(width, ratio, multiple_of))
    cost = torch.stack(
        [
            s * curve.cpu()[drops] / curve[width // 2].clamp_min(1e-300).cpu()
            for s, curve in zip(sensitivity, damage, strict=True)
        ]
    )  # [layers, steps]
    marginal = torch.cat([cost.diff(dim=1), cost.new_full((len(cost), 1), torch.inf)], dim=1)
    taken = [0] * len(cost)
    next_cost = marginal[:, 0].clone()  # [layers]
    for _ in range(uniform * len(cost)):
        layer = int(next_cost.argmin())
        taken[layer] += 1
        next_cost[layer] = marginal[layer, taken[layer]]
    return [width - drops[n] for n in taken]


def check_cap(width: int, ratio: float, settings: Settings) -> None:
    """Raise unless the cap lets one layer lose the share `ratio`.

    Raises:
        ValueError: see `allocate`.
    """
    _drop_counts(width, ratio, least_multiple(settings), settings.max_layer_ratio)


def _nearest(width: int, ratio: float, multiple: int) -> int:
    return round(width * (1 - ratio) / multiple) * multiple


def _drop_counts(width: int, ratio: float, multiple_of: int, max_layer_ratio: float) -> list[int]:
    """The numbers of neurons that a layer may lose: none, or all but a multiple."""
    n_drop = width - uniform_width(width, ratio, multiple_of)
    most = int(max_layer_ratio * width)
    drops = [0, *range((width - 1) % multiple_of + 1, most + 1, multiple_of)]
    if drops[-1] < n_drop:
        raise ValueError(
            f"max_layer_ratio: expected a cap that lets a layer of {width} lose the {n_drop} neurons of ratio={ratio}, "
            f"got {drops[-1]} for max_layer_ratio={max_layer_ratio} rounded to a multiple of {multiple_of}"
        )
    return drops
