"""Repair in the order of the layers: fit each pruned FFN to the hidden states of the dense model after its layer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN
from pruning.model.snapshot import restored_on_error
from pruning.model.surgery import Plan, Solution, prune_ffns
from pruning.observe.batches import Batch
from pruning.repair.refine import refine_ffn
from pruning.repair.ridge import ridge
from pruning.repair.stream import LayerPass, Stream

PULL_TO_DENSE = 0.5
"""Ridge penalty of each column's distance from the dense weights, relative to each kept neuron's own moment. It is
strong because the error of earlier layers is mostly noise to this layer; on held-back validation text 0.3 and 1 give
the same quality."""


class Examples(NamedTuple):
    """What one FFN should learn, batch by batch of T tokens, without padding.

    Attributes:
        passes: the FFN's inputs and neurons in the pruned stream.
        target: `[T, d]` float32, the outputs that would make the pruned stream equal to the dense one.
        weight: `[T]` float32, of each token.
    """

    passes: list[LayerPass]
    target: list[Tensor]
    weight: list[Tensor]


def examples_in_sequence(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    observe: Callable[[Tensor], None] | None = None,
) -> Iterator[Examples]:
    """What each FFN should learn, layer by layer; the caller prunes each FFN before asking for the next.

    The dense and the pruned stream run side by side. To make them equal after a layer with dense hidden states h, its
    FFN has to output what the pruned stream lacks. Each token weighs `1 / |h|^2`: unweighted, a few tokens of massive
    norm would decide the fit. If a layer normalizes the output of its FFN, the target and h are the output of the
    FFN in the dense stream, and the error of earlier layers is not compensated for.

    Args:
        batches: windows of tokens `[B, L]`.
        observe: gets the neurons `[T, N]` of the FFN in the dense stream, batch by batch.

    Memory, on the model's device: the hidden states of all tokens, twice; and for one layer the neurons, the inputs
    of the FFN, what bypasses it, and the targets.
    """
    dense = Stream(model, ffns, batches)
    pruned = dense.copy()
    for index in range(len(ffns)):
        examples = Examples([], [], [])
        for ahead, behind in zip(dense.passes(index, advance=True), pruned.passes(index), strict=True):
            if observe is not None:
                observe(ahead.z)
            aim = target = ahead.added.float()
            if ahead.skipped is not None and behind.skipped is not None:  # both or none
                aim = ahead.skipped + ahead.scale * target
                target = (aim - behind.skipped) / ahead.scale
            examples.passes.append(behind)
            examples.target.append(target)
            examples.weight.append(aim.square().mean(1).clamp_min(1e-12).reciprocal())
        yield examples
        if index + 1 < len(ffns):
            pruned.resume(index, examples.passes)
        for column in examples:
            column.clear()  # free the memory even if the caller keeps a reference


def repair_in_sequence(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    kept: Iterable[Tensor],
    batches: Sequence[Batch],
    *,
    refine: bool = False,
    seed: int = 0,
) -> None:
    """Prune the FFNs in place, each with the output projection that brings the hidden states closest to the dense ones.

    Args:
        kept: for each FFN the neurons to keep, ascending.
        batches: see `examples_in_sequence`.
        refine, seed: see `prune_and_fit`.

    Raises:
        ValueError: activations that are not finite. The model is then unchanged.
    """
    with restored_on_error(ffns), evaluation_mode(model):
        for ffn, keep, examples in zip(ffns, kept, examples_in_sequence(model, ffns, batches), strict=True):
            prune_and_fit(ffn, keep, examples, refine=refine, seed=seed)


def prune_and_fit(ffn: FFN, keep: Tensor, examples: Examples, *, refine: bool, seed: int) -> None:
    """Keep the neurons `keep`, with the output projection that comes closest to the targets.

    Args:
        refine: whether to train all projections on the same error afterwards (`pruning.repair.refine`).
        seed: for the order of tokens when refining.

    Raises:
        ValueError: activations that are not finite.
    """
    prune_ffns([Plan(ffn, keep, fit(ffn, keep, examples))])
    if refine:
        read = torch.cat([layer_pass.read for layer_pass in examples.passes])
        refine_ffn(ffn, read, torch.cat(examples.target), torch.cat(examples.weight), seed=seed)


def fit(ffn: FFN, keep: Tensor, examples: Examples) -> Solution:
    """The output projection of the neurons `keep` that comes closest to the targets, in closed form.

    With these neurons z and the target t, it minimizes the weighted sum of `|t - W z - b|^2` over tokens, with a ridge
    penalty on the distance from the dense weights. b is fitted only if the dense projection has a bias; we measured
    no gain from adding one elsewhere.

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
    for layer_pass, target, weight in zip(*examples, strict=True):
        z = layer_pass.z[:, keep].float()
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
    change = ridge(gram, missing, PULL_TO_DENSE, n_free=int(intercept)).t().float()
    fitted = dense + change  # [d, size]
    return Solution(fitted[:, : len(keep)], fitted[:, -1] if intercept else None)
