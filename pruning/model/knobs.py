"""Which config entries set the widths of a model's feed-forward networks (FFNs), found by experiment.

A class is built from its config on the `meta` device, which takes no memory for weights. Then it is built again with
one entry of the config raised, and we look at which axes of which parameters grew. An entry is a knob if everything
that grew belongs to FFNs (`pruning.model.places`). No table of architectures is needed.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, nextafter
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pruning.model.architecture import empty_model
from pruning.model.places import Growth, Place, RejectedError, find_places, is_repeated, lookalikes

STEP = 32
"""Added to an entry; a multiple of what classes require, such as an even number."""
SMALLEST = 16
"""A smaller entry is a number of something else, such as channels; narrower FFNs are not looked for."""
RATIOS = ("ratio", "mult", "expansion")
"""Parts of the names of entries that may set the width as a multiple of the hidden size."""
NOT_WIDTHS = ("head", "attention", "rank", "lora", "vocab", "position", "patch", "layers", "ffn_widths")
"""Parts of the names of entries that never set the width of an FFN. Attention heads and low-rank projections can have
the shapes of one."""
UNSET = ("n_inner", "intermediate_size", "ffn_hidden_size", "ffn_dim", "dim_feedforward")
"""Usual names of the entry. It may be None, for a multiple of the hidden size; set to a number, it is a knob too."""


@dataclass(frozen=True)
class Knob:
    """A config entry that sets the widths of FFNs.

    Attributes:
        path: of the entry in the config; an integer is an index of a list.
        value: of the entry, times `unit`.
        places: of its FFNs, in the order of the model.
        unit: 1, or what an entry that is a ratio is multiplied by to give the width.
        is_float: whether the entry is one.
        step: `value` has to be a multiple of this: `unit` for a ratio that has to be an integer, otherwise 1.
    """

    path: tuple[str | int, ...]
    value: int
    places: tuple[Place, ...]
    unit: int = 1
    is_float: bool = False
    step: int = 1

    def entry(self, value: int) -> float:
        """What to write into the config for another `value`."""
        if self.unit == 1:
            return value
        ratio = value / self.unit
        if int(ratio * self.unit) < value:  # classes round down
            ratio = nextafter(ratio, inf)
        return int(ratio) if ratio.is_integer() and not self.is_float else ratio

    def __str__(self) -> str:
        return ".".join(map(str, self.path))

    def __hash__(self) -> int:
        return hash(self.path)  # of all places would be slow


@dataclass(frozen=True)
class Knobs:
    """What `find_knobs` found.

    Attributes:
        found: every knob.
        rejected: for entries that drive FFNs but are no knobs, the reasons.
        unknown: for entries that only drive parameters of layers in which no FFN was recognized, such as experts in one
            flat matrix, one of these parameters.
    """

    found: tuple[Knob, ...]
    rejected: Mapping[str, str]
    unknown: Mapping[str, str]


def find_knobs(class_: type[PreTrainedModel], config: PretrainedConfig) -> Knobs:
    """The config entries that set the widths of FFNs of `class_(config)`.

    Raises:
        ValueError: the class cannot be built from the config.
    """
    return _find_knobs(class_, _Config(config))  # type: ignore[arg-type]  # a class is hashable


def read_entry(config: PretrainedConfig, path: tuple[str | int, ...]) -> Any:
    """The value of a config entry."""
    value: Any = config
    for step in path:
        value = value[step] if isinstance(step, int) or isinstance(value, dict) else vars(value)[step]
    return value


def set_entry(config: PretrainedConfig, path: tuple[str | int, ...], value: object) -> None:
    """Set a config entry in place."""
    *parents, last = path
    if isinstance(last, int):
        entries = list(read_entry(config, tuple(parents)))
        entries[last] = value
        set_entry(config, tuple(parents), type(read_entry(config, tuple(parents)))(entries))
        return
    holder = read_entry(config, tuple(parents))
    if isinstance(holder, dict):
        holder[last] = value
    else:
        setattr(holder, last, value)


class _Config:
    """A config that is hashed by its content, so that the experiments are made once."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = copy.deepcopy(config)
        self._key = json.dumps(config.to_dict(), sort_keys=True, default=str)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self._key == other._key


@lru_cache(maxsize=64)
def _find_knobs(class_: type[PreTrainedModel], hashed: _Config) -> Knobs:
    config = hashed.config
    try:
        base = empty_model(class_, config)
    except Exception as error:
        raise ValueError(f"{class_.__name__} cannot be built from its config: {error}") from error
    sizes = {size for parameter in base.parameters() for size in parameter.shape}
    sizes |= {2 * size for size in sizes} | {size // 2 for size in sizes}
    found, rejected, unknown = [], {}, {}
    named: set[str] = set()
    for path, value in _entries(config):
        is_ratio = any(word in str(path[-1]) for word in RATIOS)
        is_size = value in sizes or path[-1] in UNSET  # a flat stack of experts is a multiple of it
        if value is not None and not is_ratio and (value < SMALLEST or not is_size):
            if path[-1] in UNSET:
                rejected[".".join(map(str, path))] = f"FFNs of {value} neurons, expected {SMALLEST} or more"
            continue  # no FFN has this width
        try:
            knob = _experiment(class_, config, base, path, value, is_ratio=is_ratio)
        except RejectedError as reason:
            entry = ".".join(map(str, path))
            if str(reason):
                rejected[entry] = str(reason)
                named |= reason.parameters
            elif reason.parameters and all(is_repeated(base, name) for name in reason.parameters):
                unknown[entry] = min(reason.parameters)
        else:
            if knob is not None and any(is_repeated(base, place.name) for place in knob.places):
                found.append(knob)
    named |= {place.output.name for knob in found for place in knob.places}
    if without := lookalikes(base, named):
        rejected["(no entry)"] = f"{len(without)} such as {without[0]}, whose width no entry sets"
    return Knobs(_in_order(base, found), rejected, unknown)


def _entries(config: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Integer entries of a config, its sub-configs and lists, ratios, and those that may be set instead of None."""
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        if not isinstance(name, str) or name.startswith("_") or any(word in name for word in NOT_WIDTHS):
            continue
        here = (*path, name)
        if isinstance(value, (PretrainedConfig, dict)):
            yield from _entries(value, here)
        elif isinstance(value, (list, tuple)):
            if value and all(type(item) is int for item in value):
                for index, item in enumerate(value):
                    yield (*here, index), item
        elif (
            type(value) is int
            or (type(value) is float and any(word in name for word in RATIOS))
            or (value is None and name in UNSET)
        ):
            yield here, value


def _experiment(
    class_: type[PreTrainedModel],
    config: PretrainedConfig,
    base: PreTrainedModel,
    path: tuple[str | int, ...],
    value: Any,
    *,
    is_ratio: bool = False,
) -> Knob | None:
    """The knob at `path`, or None if nothing grows.

    Raises:
        RejectedError: what grows are not FFNs alone.
    """
    if value is None:
        return _unset_knob(class_, config, base, path)
    step = 1 if is_ratio else STEP
    larger = _build(class_, config, path, value + step)
    moved = _moved(base, larger)
    if not moved:
        return None
    # A ratio is multiplied by the growth of the first FFN.
    unit = next(iter(moved.values()))[0][1] if is_ratio else 1
    try:
        places = find_places(base, larger, moved, int(value * unit), unit if is_ratio else STEP)
    except RejectedError as reason:
        reason.parameters = frozenset(moved)
        raise
    knob = Knob(path, int(value * unit), places, unit, type(value) is float)
    if not is_ratio:
        return knob
    try:
        _build(class_, config, path, knob.entry(knob.value - 1))
    except RejectedError:  # it has to be an integer
        return replace(knob, step=unit)
    return knob


def _unset_knob(
    class_: type[PreTrainedModel],
    config: PretrainedConfig,
    base: PreTrainedModel,
    path: tuple[str | int, ...],
) -> Knob | None:
    """The knob at an entry that is None: the width is what the class makes of that."""
    probe = 8 * STEP
    moved = _moved(_build(class_, config, path, probe), _build(class_, config, path, probe + STEP))
    outputs = [name for name, axes in moved.items() if len(axes) == 1]
    for name in outputs:
        width = base.get_parameter(name).shape[moved[name][0][0]]
        explicit = copy.deepcopy(config)
        set_entry(explicit, path, width)
        same = _build(class_, explicit, path, width)
        if not _moved(base, same):
            return _experiment(class_, explicit, base, path, width)
    return None


def _build(
    class_: type[PreTrainedModel], config: PretrainedConfig, path: tuple[str | int, ...], value: float
) -> PreTrainedModel:
    changed = copy.deepcopy(config)
    try:
        set_entry(changed, path, value)
        return empty_model(class_, changed)
    except Exception as error:
        raise RejectedError from error  # the entry cannot change alone


def _moved(base: nn.Module, larger: nn.Module) -> Growth:
    """The axes that grew, and by how much, of each parameter.

    Raises:
        RejectedError: parameters or buffers appeared, or a buffer grew: the entry sets more than widths.
    """
    before, after = dict(base.named_parameters()), dict(larger.named_parameters())
    if before.keys() != after.keys() or any(p.ndim != after[name].ndim for name, p in before.items()):
        raise RejectedError
    moved = {
        name: [
            (axis, new - old)
            for axis, (old, new) in enumerate(zip(before[name].shape, after[name].shape, strict=True))
            if old != new
        ]
        for name in before
        if before[name].shape != after[name].shape
    }
    buffers = {name: buffer.shape for name, buffer in base.named_buffers()}
    if moved and buffers != {name: buffer.shape for name, buffer in larger.named_buffers()}:
        raise RejectedError
    return moved


def _in_order(base: PreTrainedModel, found: list[Knob]) -> tuple[Knob, ...]:
    """The knobs in the order of their FFNs, without those that only set FFNs which another one sets too, such as the
    number of shared experts."""
    places = {knob.path: {place.output.name for place in knob.places} for knob in found}
    found = [
        knob
        for i, knob in enumerate(found)
        if not any(
            places[knob.path] < places[other.path] or (places[knob.path] == places[other.path] and j < i)
            for j, other in enumerate(found)
            if other is not knob
        )
    ]
    order = {name: index for index, (name, _) in enumerate(base.named_parameters())}
    return tuple(sorted(found, key=lambda knob: order[knob.places[0].output.name]))
