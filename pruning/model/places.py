"""Dividing the parameters that grow with a config entry into feed-forward networks (FFNs).

A neuron of an FFN is one input of its output projection: `act(gate) * up` in a gated FFN, the output of the activation
function otherwise. So each FFN has one projection that contracts the neurons, its output projection, and input
projections with rows that compute them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Growth = dict[str, list[tuple[int, int]]]
"""For each parameter that grew, the axes that did, and by how much."""


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


class RejectedError(Exception):
    """What grows are not FFNs alone; the message is the reason, if some of it is."""

    parameters: frozenset[str] = frozenset()
    """What grows with it."""


def find_places(
    base: PreTrainedModel,
    larger: PreTrainedModel,
    moved: Growth,
    value: int,
    step: int,
) -> tuple[Place, ...]:
    """Divide the parameters that grew into FFNs.

    Raises:
        RejectedError: with a reason if some of them are FFNs.
    """
    outputs, inputs = [], {}
    for name, axes in moved.items():
        owner = base.get_submodule(name.rpartition(".")[0])
        if len(axes) > 1 or isinstance(owner, nn.Embedding):
            raise RejectedError  # the size of the hidden states
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
        raise RejectedError
    if left:
        names = ", ".join(sorted(left)[:3])
        raise RejectedError(f"it also sets the shape of {names}" + (" and others" if len(left) > 3 else ""))
    return tuple(places)


def _role(owner: nn.Module, name: str, axes: list[tuple[int, int]], moved: Growth) -> str | None:
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


def _is_transposed(owner: nn.Module, moved: Growth) -> bool:
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


def is_repeated(base: nn.Module, name: str) -> bool:
    """Whether a module is in a list of layers, unlike projectors and heads."""
    steps = name.split(".")
    return any(
        isinstance(base.get_submodule(".".join(steps[:depth])), nn.ModuleList)
        for depth in range(1, len(steps))
    )


def lookalikes(base: nn.Module, known: Collection[str]) -> list[str]:
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
                and is_repeated(base, name)
            ):
                names.append(output)
    return names


def _place(
    base: PreTrainedModel,
    larger: PreTrainedModel,
    name: str,
    output: str,
    inputs: list[str],
    moved: Growth,
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
            raise RejectedError(f"{parameter} has {shape[0]} experts, {output} {weight.shape[0]}")
        if "norm" in type(holder).__name__.lower():
            raise RejectedError(f"{parameter} belongs to a norm over the neurons")
        interleaved = copies == 2 and not getattr(holder, "is_concatenated", True)
        slots.append(Slot(parameter, at - stacked, int(copies), interleaved))
    own = {parameter.rpartition(".")[0] for parameter in (*inputs, output)}
    of_others = {parameter.rpartition(".")[0] for parameter in moved} - own
    attributes = tuple(
        (module_name, attribute, Fraction(after - before, growth))
        for module_name, module in base.named_modules(prefix="")
        if (module_name == name or module_name.startswith(f"{name}.")) and module_name not in of_others
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
