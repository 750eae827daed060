"""Which config entries set the widths of a model's feed-forward networks (FFNs), found by experiment.

A class is built from its config on the `meta` device, which takes no memory for weights. Then it is built again with
one integer entry of the config raised, and we look at which axes of which parameters grew. An entry is a knob if
everything that grew belongs to FFNs. No table of architectures is needed.

A neuron of an FFN is one input of its output projection: `act(gate) * up` in a gated FFN, the output of the activation
function otherwise. So each FFN has one projection that contracts the neurons, its output projection, and input
projections with rows that compute them.
"""

import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import inf, nextafter
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruning.model.architecture import empty_model

STEP = 32
"""Added to an entry; a multiple of what classes require, such as an even number."""
SMALLEST = 16
"""No FFN is narrower; a smaller entry is a number of something else."""
RATIOS = ("ratio", "mult", "expansion")
"""Parts of the names of entries that may set the width as a multiple of the hidden size."""
NOT_WIDTHS = ("head", "rank", "lora", "vocab", "position", "patch", "layers", "ffn_widths")
"""Parts of the names of entries that never set the width of an FFN. Attention heads and low-rank projections can have
the shapes of one."""
UNSET = ("n_inner", "intermediate_size", "ffn_hidden_size", "ffn_dim", "dim_feedforward")
"""Entries that may be None, for a multiple of the hidden size; set to a number, they are knobs as well."""


@dataclass(frozen=True)
class Slot:
    """A parameter with one axis over the neurons of an FFN.

    Attributes:
        name: of the parameter.
        axis: over the neurons; in a stack of experts, the axis behind that of the experts counts as 0.
        copies: entries per neuron along the axis; 2 in a fused gate and up projection.
        interleaved: whether the copies for one neuron are adjacent, instead of blocks of N.
    """

    name: str
    axis: int
    copies: int = 1
    interleaved: bool = False


@dataclass(frozen=True)
class Place:
    """Where one FFN, or one stack of experts, is in a class of models.

    Attributes:
        name: of the smallest module that contains it.
        inputs: weights, and biases behind their weights, with rows that compute neurons.
        output: weight of the output projection.
        output_bias: whether there is one.
        experts: number of experts in the stack; None for a single FFN.
        scale: neurons per unit of the config entry.
        attributes: integer attributes of modules that follow the width: module, name, change per neuron.
    """

    name: str
    inputs: tuple[Slot, ...]
    output: Slot
    output_bias: bool
    experts: int | None
    scale: Fraction
    attributes: tuple[tuple[str, str, Fraction], ...]


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


@dataclass(frozen=True)
class Knobs:
    """What `find_knobs` found.

    Attributes:
        found: every knob.
        rejected: for entries that drive FFNs but are no knobs, the reasons.
    """

    found: tuple[Knob, ...]
    rejected: Mapping[str, str]


class _Rejected(Exception):  # noqa: N818, not an error: this entry is no knob
    parameters: frozenset[str] = frozenset()
    """What grows with it."""


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
        value = (
            value[step]
            if isinstance(step, int)
            else value[step]
            if isinstance(value, dict)
            else vars(value)[step]
        )
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
    found, rejected = [], {}
    named: set[str] = set()
    for path, value in _entries(config):
        is_ratio = any(word in str(path[-1]) for word in RATIOS)
        if value is not None and not is_ratio and (value < SMALLEST or value not in sizes):
            continue  # no FFN has this width
        try:
            knob = _experiment(class_, config, base, path, value, is_ratio=is_ratio)
        except _Rejected as reason:
            if str(reason):
                rejected[".".join(map(str, path))] = str(reason)
                named |= reason.parameters
        else:
            if knob is not None and any(_is_repeated(base, place.name) for place in knob.places):
                found.append(knob)
    named |= {place.output.name for knob in found for place in knob.places}
    if without := _without_knob(base, named):
        rejected["(no entry)"] = f"{len(without)} such as {without[0]}, whose width no entry sets"
    return Knobs(_in_order(base, found), rejected)


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
        _Rejected: what grows are not FFNs alone.
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
        places = _places(base, larger, moved, int(value * unit), unit if is_ratio else STEP)
    except _Rejected as reason:
        reason.parameters = frozenset(moved)
        raise
    knob = Knob(path, int(value * unit), places, unit, type(value) is float)
    if not is_ratio:
        return knob
    try:
        _build(class_, config, path, knob.entry(knob.value - 1))
    except _Rejected:  # it has to be an integer
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
        raise _Rejected from error  # the entry cannot change alone


def _moved(base: nn.Module, larger: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """The axes that grew, and by how much, of each parameter.

    Raises:
        _Rejected: parameters or buffers appeared, or a buffer grew: the entry sets more than widths.
    """
    before, after = dict(base.named_parameters()), dict(larger.named_parameters())
    if before.keys() != after.keys() or any(p.ndim != after[name].ndim for name, p in before.items()):
        raise _Rejected
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
        raise _Rejected
    return moved


def _places(
    base: PreTrainedModel,
    larger: PreTrainedModel,
    moved: dict[str, list[tuple[int, int]]],
    value: int,
    step: int,
) -> tuple[Place, ...]:
    """Divide the parameters that grew into FFNs.

    Raises:
        _Rejected: with a reason if some of them are FFNs.
    """
    outputs, inputs = [], {}
    for name, axes in moved.items():
        owner = base.get_submodule(name.rpartition(".")[0])
        if len(axes) > 1 or isinstance(owner, nn.Embedding):
            raise _Rejected  # the size of the hidden states
        role = _role(owner, name, axes, moved)
        if role is None:
            continue
        if role == "output":
            outputs.append(name)
        else:
            inputs[name] = axes[0][0]
    left, places = dict(moved), []
    for output in outputs:
        name, members = _surroundings(output, moved, inputs, outputs)
        if members and (place := _place(base, larger, name, output, members, moved, value, step)):
            places.append(place)
            for member in (*members, output):
                left.pop(member, None)
    if not places:
        raise _Rejected
    if left:
        names = ", ".join(sorted(left)[:3])
        raise _Rejected(f"it also sets the shape of {names}" + (" and others" if len(left) > 3 else ""))
    return tuple(places)


def _role(
    owner: nn.Module, name: str, axes: list[tuple[int, int]], moved: dict[str, list[tuple[int, int]]]
) -> str | None:
    """Whether a parameter computes neurons ("input") or contracts them ("output"), by the axis that grew."""
    parameter = getattr(owner, name.rpartition(".")[2])
    axis = axes[0][0]
    if isinstance(owner, (nn.Linear, Conv1D)):
        if parameter.ndim == 1:
            return "input"
        contracted = 0 if isinstance(owner, Conv1D) else 1
    elif _is_stack(owner, parameter):
        if axis == 0:
            return None  # the number of experts
        if parameter.ndim == 2:
            return "input"
        contracted = 1 if _is_transposed(owner, moved) else 2
    else:
        return None
    return "output" if axis == contracted else "input"


def _is_stack(owner: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether the parameter holds the weights or biases of a stack of experts, `[E, ., .]` or `[E, .]`."""
    largest = max((p.ndim for p in owner.parameters(recurse=False)), default=0)
    return largest == 3 and parameter.ndim in (2, 3) and not isinstance(owner, nn.modules.conv._ConvNd)


def _is_transposed(owner: nn.Module, moved: dict[str, list[tuple[int, int]]]) -> bool:
    """Whether the experts of a stack are stored as `[in, out]` instead of `[out, in]`."""
    if hasattr(owner, "is_transposed"):
        return bool(owner.is_transposed)
    # A fused gate and up projection grows twice as fast; the axis in which it grows is that of its outputs.
    growth = {axes[0] for axes in moved.values() if axes[0][0] > 0}
    fastest = max(grew for _, grew in growth)
    axes = {axis for axis, grew in growth if grew == fastest}
    return axes == {2}


def _surroundings(
    output: str, moved: Mapping[str, object], inputs: Mapping[str, object], outputs: Sequence[str]
) -> tuple[str, list[str]]:
    """The smallest module that contains an output projection and an input projection, and what else grew in it.

    If it contains several output projections, only what comes behind the one before.
    """
    module = output.rpartition(".")[0]
    while module:
        members = [name for name in moved if name.startswith(f"{module}.")]
        if any(name in inputs for name in members):
            break
        module = module.rpartition(".")[0]
    else:
        return "", []
    if sum(name in outputs for name in members) > 1:
        end = members.index(output)
        start = max((i + 1 for i, name in enumerate(members[:end]) if name in outputs), default=0)
        members = members[start:end]
    return module, [name for name in members if name != output]


def _is_repeated(base: nn.Module, name: str) -> bool:
    """Whether a module is in a list of layers, unlike projectors and heads."""
    steps = name.split(".")
    return any(
        isinstance(base.get_submodule(".".join(steps[:depth])), nn.ModuleList)
        for depth in range(1, len(steps))
    )


def _without_knob(base: nn.Module, known: Collection[str]) -> list[str]:
    """The output projections that look like those of FFNs in a list of layers but are not among the `known` weights."""
    names = []
    for name, module in base.named_modules():
        linears = [(n, m) for n, m in module.named_children() if isinstance(m, nn.Linear)]
        for (_, first), (child, second) in pairwise(linears):
            output = f"{name}.{child}"
            returns = first.in_features == second.out_features
            widens = first.out_features in (second.in_features, 2 * second.in_features) and (
                second.in_features > first.in_features
            )
            attends = "att" in name.rpartition(".")[2].lower()
            if (
                returns
                and widens
                and not attends
                and f"{output}.weight" not in known
                and _is_repeated(base, name)
            ):
                names.append(output)
    return names


def _place(
    base: PreTrainedModel,
    larger: PreTrainedModel,
    name: str,
    output: str,
    inputs: list[str],
    moved: dict[str, list[tuple[int, int]]],
    value: int,
    step: int,
) -> Place | None:
    axis, growth = moved[output][0]
    weight = base.get_parameter(output)
    owner = base.get_submodule(output.rpartition(".")[0])
    stacked = weight.ndim == 3
    width = weight.shape[axis]
    scale = Fraction(growth, step)
    if scale * value != width:
        return None  # not proportional to the entry
    slots = []
    for parameter in inputs:
        holder = base.get_submodule(parameter.rpartition(".")[0])
        (at, grew), shape = moved[parameter][0], base.get_parameter(parameter).shape
        copies = Fraction(grew, growth)
        if (
            copies not in (1, 2)
            or shape[at] != copies * width
            or len(shape) not in (weight.ndim, weight.ndim - 1)
        ):
            return None
        if stacked and shape[0] != weight.shape[0]:
            raise _Rejected(f"{parameter} has {shape[0]} experts, {output} {weight.shape[0]}")
        if "norm" in type(holder).__name__.lower():
            raise _Rejected(f"{parameter} belongs to a norm over the neurons")
        interleaved = copies == 2 and not getattr(holder, "is_concatenated", True)
        slots.append(Slot(parameter, at - stacked, int(copies), interleaved))
    attributes = tuple(
        (module_name, attribute, Fraction(after - before, growth))
        for module_name, module in base.named_modules(prefix="")
        if module_name == name or module_name.startswith(f"{name}.")
        for attribute, before in vars(module).items()
        if type(before) is int and (after := vars(larger.get_submodule(module_name))[attribute]) != before
    )
    bias = f"{output.rpartition('.')[2]}_bias" if stacked else "bias"
    return Place(
        name,
        tuple(slots),
        Slot(output, axis - stacked),
        getattr(owner, bias, None) is not None,
        weight.shape[0] if stacked else None,
        scale,
        attributes,
    )


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
