"""Removing neurons from a model, so that its config describes the result."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.families import FFN, WIDTH, WIDTHS, bias_switch, text_config


class Projection(NamedTuple):
    """A new output projection: `weight [d, kept]`, `bias [d]` or None."""

    weight: Tensor
    bias: Tensor | None

    def to(self, dtype: torch.dtype) -> "Projection":
        return Projection(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def complement(indices: Tensor, length: int) -> Tensor:
    """All of 0..length-1 that are not in `indices`, ascending."""
    absent = torch.ones(length, dtype=torch.bool, device=indices.device)
    absent[indices] = False
    return absent.nonzero().flatten()


def prune_ffn(ffn: FFN, keep: Tensor, projection: Projection) -> None:
    """Keep the neurons `keep` of one FFN, in place, with `projection` as its output projection."""
    for linear in ffn.inputs:
        bias = None if linear.bias is None else linear.bias.detach()[keep]
        _replace(linear, linear.weight.detach()[keep], bias)
    _replace(ffn.output, projection.weight, projection.bias)


def resize_ffn(ffn: FFN, width: int) -> None:
    """Give an FFN `width` neurons with uninitialized weights, in place."""
    for linear in ffn.inputs:
        bias = None if linear.bias is None else linear.bias.new_empty(width)
        _replace(linear, linear.weight.new_empty(width, linear.in_features), bias)
    output = ffn.output
    bias = None if output.bias is None else output.bias.detach()
    _replace(output, output.weight.new_empty(output.out_features, width), bias)


def update_config(model: PreTrainedModel, ffns: list[FFN]) -> None:
    """Write the new widths, and the switch for added biases, into the config.

    A class whose switch controls all biases of the FFN gets zero biases where there were none.
    """
    config = text_config(model)
    widths = [ffn.width for ffn in ffns]
    setattr(config, WIDTH, max(widths))
    if len(set(widths)) > 1:
        setattr(config, WIDTHS, widths)
    elif hasattr(config, WIDTHS):
        delattr(config, WIDTHS)
    switch = bias_switch(ffns[0])
    added = ffns[0].output.bias is not None and ffns[0].inputs[0].bias is None
    if added and switch is not None:
        setattr(config, switch, True)
    for ffn in ffns:
        if hasattr(ffn.block, WIDTH):
            setattr(ffn.block, WIDTH, ffn.width)
        if added:
            for linear in ffn.inputs:
                _replace(linear, linear.weight.detach(), linear.weight.new_zeros(ffn.width))


def _replace(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give `linear` new parameters; the old ones are not changed."""
    old = linear.weight
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.to(old).contiguous(), requires_grad=old.requires_grad)
    new_bias = None if bias is None else nn.Parameter(bias.to(old), requires_grad=old.requires_grad)
    linear.register_parameter("bias", new_bias)
