"""Repair in the order of the layers: each pruned FFN is fitted to what the dense model has after its layer."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.model.families import FFN
from pruning.model.surgery import prune_ffn, restored_on_error
from pruning.observe.capture import evaluation_mode
from pruning.repair.closed_form import Projection, ridge
from pruning.repair.lockstep import Step, Stream
from pruning.repair.refine import BATCH, refine_ffn

RIDGE = 0.5
"""Share of each kept neuron's own second moment that pulls its column towards the dense weights. Strong, since what
earlier layers lost is in great part noise to this one; held-back validation text does not tell 0.3 from 1."""

REFINE_PASSES = 4
"""Over the tokens, in `pruning.repair.refine`, for each FFN; more overfits where tokens are few."""


class Examples(NamedTuple):
    """What one FFN should learn, batch by batch of T tokens.

    Attributes:
        steps: what it reads and its neurons, in the pruned stream.
        target: `[T, d]` float32, what it should add for the stream to be the dense one.
        weight: `[T]` float32, of each token.
    """

    steps: list[Step]
    target: list[Tensor]
    weight: list[Tensor]


def in_sequence(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Tensor],
    watch: Callable[[Tensor], None] | None = None,
) -> Iterator[Examples]:
    """What each FFN should learn, layer after layer; the caller prunes it before asking for the next.

    The dense and the pruned stream run side by side. For them to be one after a layer, its FFN should add what is
    missing in the pruned stream to the dense residual h, each token weighing `1 / |h|^2`: without that a few tokens of
    massive norm decide. Where a layer norms what its FFN gives, the target and h are what the FFN gives in the dense
    stream: what earlier layers lost is then not made up for.

    Args:
        batches: windows of tokens `[B, L]`.
        watch: is given the neurons `[T, N]` of the FFN in the dense stream, batch by batch.

    Memory, on the model's device: the hidden states of all tokens, twice, and of one layer the neurons, what the FFN
    reads, what goes past it and what it should add.
    """
    dense = Stream(model, ffns, batches)
    pruned = dense.copy()
    for index in range(len(ffns)):
        examples = Examples([], [], [])
        for ahead, behind in zip(dense.steps(index, advance=True), pruned.steps(index), strict=True):
            if watch is not None:
                watch(ahead.z)
            aim = target = ahead.added.float()
            if ahead.skipped is not None and behind.skipped is not None:  # both or none
                aim = ahead.skipped + ahead.scale * target
                target = (aim - behind.skipped) / ahead.scale
            examples.steps.append(behind)
            examples.target.append(target)
            examples.weight.append(aim.square().mean(1).clamp_min(1e-12).reciprocal())
        yield examples
        pruned.resume(index, examples.steps)
        for part in examples:
            part.clear()  # the caller may still hold on to it when the next ones are made


def repair_in_sequence(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    kept: Iterable[Tensor],
    batches: Sequence[Tensor],
    *,
    refine: bool = False,
    seed: int = 0,
) -> None:
    """Prune the FFNs in place, each with the projection that brings the hidden states back to the dense ones.

    Args:
        kept: for each FFN the neurons that stay, ascending.
        batches, refine, seed: as `in_sequence` and `prune_to`.

    Raises:
        ValueError: activations that are not finite. The model is then as it was.
    """
    with restored_on_error(ffns), evaluation_mode(model):
        for ffn, keep, examples in zip(ffns, kept, in_sequence(model, ffns, batches), strict=True):
            prune_to(ffn, keep, examples, refine=refine, seed=seed)


def prune_to(ffn: FFN, keep: Tensor, examples: Examples, *, refine: bool, seed: int) -> None:
    """Leave the neurons `keep`, with the output projection that comes closest to the targets.

    Args:
        refine: whether all projections then descend on the same error (`pruning.repair.refine`).
        seed: of the order of tokens in that descent.

    Raises:
        ValueError: activations that are not finite.
    """
    prune_ffn(ffn, keep, fit(ffn, keep, examples))
    if refine:
        read = torch.cat([step.read for step in examples.steps])
        target, weight = torch.cat(examples.target), torch.cat(examples.weight)
        refine_ffn(ffn, read, target, weight, steps=math.ceil(REFINE_PASSES * len(read) / BATCH), seed=seed)


def fit(ffn: FFN, keep: Tensor, examples: Examples) -> Projection:
    """The output projection of the neurons `keep` that comes closest to the targets, in closed form.

    With z these neurons and t the target it minimises the weighted sum of `|t - W z - b|^2` over tokens, with a ridge
    towards the dense weights. There is a b where the dense projection has one; to give others one gains nothing.

    Raises:
        ValueError: activations that are not finite.
    """
    dense = ffn.output.weight.detach()[:, keep].float()  # [d, kept]
    intercept = ffn.output.bias is not None
    if intercept:
        dense = torch.cat([dense, ffn.output.bias.detach().float()[:, None]], dim=1)
    size = dense.shape[1]
    gram = dense.new_zeros(size, size)
    cross = dense.new_zeros(size, len(dense))
    for step, target, weight in zip(*examples, strict=True):
        z = step.z[:, keep].float()
        if intercept:
            z = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        weighted = z * weight[:, None]
        gram.addmm_(weighted.t(), z)
        cross.addmm_(weighted.t(), target)
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise ValueError(
            f"{ffn.name}: expected finite activations in the pruned model, got NaN or infinite ones"
        )
    missing = cross - gram @ dense.t()
    fitted = dense + ridge(gram, missing, RIDGE, n_free=int(intercept)).t().float()  # [d, size]
    return Projection(fitted[:, : len(keep)], fitted[:, -1] if intercept else None)
