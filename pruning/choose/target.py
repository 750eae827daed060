"""The ratio that gives the pruned model a size: at most a number of parameters, or of bytes of weights."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from pruning.choose.budget import check_cap, kept_width, least_multiple
from pruning.model.ffn import FFN
from pruning.model.saved import pruned_shapes
from pruning.model.size import saved_buffers
from pruning.settings import Settings


class Size(NamedTuple):
    """How large a model is; shared parameters count once, and saved buffers are only in the bytes."""

    parameters: int
    bytes: int


def reach_target(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    settings: Settings,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Settings:
    """The settings with the smallest ratio that leaves the model at most `target_params` parameters or `target_bytes`
    bytes of weights; unchanged without a target.

    Args:
        ffns: that are pruned.
        dtypes: see `pruned_size`.

    Raises:
        ValueError: the model is that small already, or no ratio makes it that small.
    """
    name = "target_params" if settings.target_params is not None else "target_bytes"
    target = getattr(settings, name)
    if target is None:
        return settings
    unit, field = ("parameters", 0) if name == "target_params" else ("bytes", 1)
    dense = pruned_size(model, ffns, None, settings, dtypes)[field]
    if target >= dense:
        raise ValueError(f"{name}: expected less than the {dense:,} {unit} of the model, got {target:,}")
    ratios = _ratios(ffns, settings)

    def size(ratio: float) -> int:
        return pruned_size(model, ffns, ratio, settings, dtypes)[field]

    if not ratios or size(ratios[-1]) > target:
        reachable = "another model"
        if ratios:
            reachable = f"at least {size(ratios[-1]):,} {unit}, at ratio={ratios[-1]:.4g}"
        raise ValueError(
            f"{name}: expected {reachable}, since only FFNs get smaller and each keeps some neurons, got {target:,}"
        )
    found = bisect_left(ratios, -target, key=lambda ratio: -size(ratio))
    if found + 1 < len(ratios) and size(ratios[found + 1]) == size(ratios[found]):
        found += 1  # what is dropped then, rather than where the rounding begins to drop it
    return replace(settings, ratio=ratios[found])


def pruned_size(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    ratio: float | None,
    settings: Settings,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Size:
    """The size that the model will have, for any budget; None as the ratio gives that of the model as it is.

    Args:
        dtypes: of the weights in the result by name, where they differ from those of the model.
    """
    if ratio is None:
        shapes = {}
    else:
        widths = kept_widths(ffns, ratio, settings)
        shapes = pruned_shapes(model, ffns, widths, adds_bias=adds_bias(ffns, settings))
    known = dict(model.named_parameters(remove_duplicate=False))
    weights = {
        name: (shapes.get(name, parameter.shape), (dtypes or {}).get(name, parameter.dtype))
        for name, parameter in model.named_parameters()
    }
    for name in shapes.keys() - known.keys():  # biases that will be added, in the dtype of their weights
        weights[name] = shapes[name], weights[f"{name.removesuffix('bias')}weight"][1]
    values = {name: math.prod(shape) for name, (shape, _) in weights.items()}
    buffers = sum(
        buffer.numel() * (dtypes or {}).get(name, buffer.dtype).itemsize
        for name, buffer in saved_buffers(model).items()
    )
    return Size(
        sum(values.values()),
        sum(values[name] * dtype.itemsize for name, (_, dtype) in weights.items()) + buffers,
    )


def kept_widths(ffns: Sequence[FFN], ratio: float, settings: Settings) -> list[int]:
    """Neurons to keep in each FFN, see `pruning.choose.budget.kept_width`.

    Raises:
        ValueError: see `pruning.choose.budget.uniform_width`.
    """
    return [kept_width(ffn, ratio, settings) for ffn in ffns]


def adds_bias(ffns: Sequence[FFN], settings: Settings) -> bool:
    """Whether the repair gives a bias to an output projection that has none."""
    return settings.repair == "bias" and not all(ffn.had_bias for ffn in ffns)


def _ratios(ffns: Sequence[FFN], settings: Settings) -> list[float]:
    """Ratios that the rounding of widths and the cap allow, ascending: for each width of an FFN, that which it is, and
    one just beyond where rounding begins to give it."""
    low, high, found = 0.0, 1.0, set()
    for ffn in {(ffn.width, ffn.scale, ffn.knob): ffn for ffn in ffns}.values():
        entry = int(ffn.width / ffn.scale)
        step = math.lcm(least_multiple(settings), ffn.knob.step)
        first = (entry - 1) % step + 1  # neurons beyond a multiple
        steps = range(first, entry, step)
        own = [(n_drop + side * step) / entry for n_drop in steps for side in (-0.49, 0.0, 0.49)]
        own = [ratio for ratio in own if _allows(partial(kept_width, ffn, ratio, settings))]
        if not own:
            return []
        low, high = max(low, own[0]), min(high, own[-1])
        found |= {ratio for n_drop in steps for ratio in (n_drop / entry, (n_drop - 0.49 * step) / entry)}
    ratios = sorted(ratio for ratio in found if ratio > 0 and low <= ratio <= high)
    if settings.budget == "uniform":
        return ratios
    return [ratio for ratio in ratios if _allows(partial(check_cap, ffns[0].width, ratio, settings))]


def _allows(check: Callable[[], object]) -> bool:
    """Whether a check passes."""
    try:
        check()
    except ValueError:
        return False
    return True
