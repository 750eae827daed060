"""Removing neurons from a model, so that its config describes the result."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.ffn import FFN, WIDTHS, Projection, set_widths
from pruning.model.knobs import read_entry


class Solution(NamedTuple):
    """A new output projection.

    Attributes:
        weight: `[d, kept]`.
        bias: `[d]` or None.
        error: the squared error of the output, relative to the square of what it should be; NaN if unknown.
    """

    weight: Tensor
    bias: Tensor | None
    error: float = math.nan

    def to(self, dtype: torch.dtype) -> "Solution":
        return Solution(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype), self.error)


class Cut(NamedTuple):
    """What to do with one FFN: keep the neurons `keep` `[kept]`, with `solution` as the output projection."""

    ffn: FFN
    keep: Tensor
    solution: Solution


def complement(indices: Tensor, length: int) -> Tensor:
    """All of 0..length-1 that are not in `indices`, ascending."""
    absent = torch.ones(length, dtype=torch.bool, device=indices.device)
    absent[indices] = False
    return absent.nonzero().flatten()


def prune_ffns(cuts: Iterable[Cut]) -> None:
    """Carry out the cuts, in place. All experts of a stack have to be among them, with equally many kept neurons."""
    stacks: dict[int, list[Cut]] = {}
    for cut in cuts:
        stacks.setdefault(id(cut.ffn.output.parameter), []).append(cut)
    for stack in stacks.values():
        _prune_stack(stack)


def resize_ffn(ffn: FFN, width: int) -> None:
    """Give an FFN `width` neurons, some of its own, in place."""
    keep = torch.arange(ffn.width, device=ffn.output.weight.device)[:width]
    prune_ffns([Cut(ffn, keep, Solution(ffn.output.weight.detach()[:, keep], ffn.output.bias))])


def resize_ffns(ffns: Sequence[FFN], widths: Sequence[int]) -> None:
    """Give FFNs the widths that a config of one width for all cannot say, in place."""
    for ffn, width in zip(ffns, widths, strict=True):
        if ffn.width != width:
            resize_ffn(ffn, width)


def update_config(model: PreTrainedModel, ffns: Sequence[FFN]) -> None:
    """Write the new widths, and the switch for added biases, into the config."""
    adds_bias = any(ffn.output.bias is not None and not ffn.had_bias for ffn in ffns)
    for knob in set_widths(model.config, ffns, [ffn.width for ffn in ffns], adds_bias=adds_bias):
        driven = [ffn for ffn in ffns if ffn.knob == knob]
        holder = read_entry(model.config, knob.path[:-1])
        if len({int(ffn.width / ffn.scale) for ffn in driven}) > 1:
            setattr(holder, WIDTHS, [ffn.width for ffn in driven])
        elif hasattr(holder, WIDTHS):
            delattr(holder, WIDTHS)
    add_input_biases(ffns)


def add_input_biases(ffns: Sequence[FFN]) -> None:
    """Add zero biases to the input projections of FFNs whose output projection was given a bias, in place.

    One switch in the config stands for the biases of all projections.
    """
    for ffn in ffns:
        if ffn.output.bias is None or ffn.had_bias:
            continue
        for projection in ffn.inputs:
            if projection.bias_parameter is None:
                zeros = projection.weight.new_zeros(projection.out_features)
                _set(projection, projection.bias_name, zeros)


def _prune_stack(cuts: Sequence[Cut]) -> None:
    """Carry out the cuts for all FFNs that share their parameters: one, or the experts of a stack in their order."""
    first = cuts[0].ffn
    before = first.width
    stacked = first.is_routed
    if stacked:
        cuts = sorted(cuts, key=lambda cut: cut.ffn.output.expert or 0)
        experts, counts = len(first.output.parameter), {len(cut.keep) for cut in cuts}
        if len(cuts) != experts or len(counts) > 1:
            raise ValueError(
                f"{first.name}: expected all {experts} experts to keep equally many neurons, got {len(cuts)} experts "
                f"that keep {sorted(counts)}"
            )

    def rebuilt(parameter: Tensor, change: Callable[[Cut, Tensor], Tensor]) -> Tensor:
        """The parameter after a change to the part of each cut."""
        if not stacked:
            return change(cuts[0], parameter)
        return torch.stack([change(cut, parameter[expert]) for expert, cut in enumerate(cuts)])

    new: list[tuple[Projection, str, Tensor]] = []
    for i, projection in enumerate(first.inputs):

        def kept_entries(cut: Cut, values: Tensor, i: int = i) -> Tensor:
            own = cut.ffn.inputs[i]
            return values.index_select(own.axis if values.ndim > 1 else 0, own.entries(cut.keep))

        new.append((projection, projection.weight_name, rebuilt(projection.parameter, kept_entries)))
        if projection.bias_parameter is not None:
            new.append((projection, projection.bias_name, rebuilt(projection.bias_parameter, kept_entries)))
    output, solution = first.output, cuts[0].solution
    weight = rebuilt(
        output.parameter,
        lambda cut, _: cut.solution.weight if output.axis == 1 else cut.solution.weight.t(),
    )
    new.append((output, output.weight_name, weight))
    if solution.bias is not None:
        bias = rebuilt(output.parameter, lambda cut, _: cut.solution.bias)  # type: ignore[arg-type, return-value]
        new.append((output, output.bias_name, bias))
    for projection, name, values in new:
        _set(projection, name, values)
    for owner, name in first.vectors:
        values = getattr(owner, name)
        kept = nn.Parameter(values.detach()[cuts[0].keep], requires_grad=values.requires_grad)
        owner.register_parameter(name, kept)
    for module, attribute, change in first.attributes:
        setattr(module, attribute, int(getattr(module, attribute) + change * (first.width - before)))
    for owner in first.output.owners + sum((projection.owners for projection in first.inputs), ()):
        _describe(owner)


def _set(projection: Projection, name: str, values: Tensor) -> None:
    """Replace a parameter in all modules that share it; the old one is not changed."""
    old = projection.parameter
    new = nn.Parameter(values.detach().to(old).contiguous(), requires_grad=old.requires_grad)
    for owner in projection.owners:
        owner.register_parameter(name, new)


def _describe(owner: nn.Module) -> None:
    """Let a tied `nn.Linear` that is outside of the block say its new size."""
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
