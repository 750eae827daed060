"""Repair in the order of the layers: fit each pruned FFN to the hidden states of the dense model after its layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN
from pruning.model.snapshot import restored_on_error
from pruning.model.surgery import Plan, Solution, prune_ffns
from pruning.observe.batches import Batch
from pruning.observe.capture import MIN_TOKENS
from pruning.observe.neurons import Neurons
from pruning.repair.form import Form
from pruning.repair.refine import refine_ffn
from pruning.repair.ridge import ridge
from pruning.repair.stream import LayerPass, Stream

PULL_TO_DENSE = 0.5
"""Ridge penalty of each column's distance from the dense weights, relative to each kept neuron's own moment. It is
strong because the error of earlier layers is mostly noise to this layer; on held-back validation text 0.3 and 1 give
the same quality."""


class Examples(NamedTuple):
    """What one FFN should learn, batch by batch of t tokens.

    Attributes:
        parts: the FFN in the pruned stream.
        target: `[t, d]` float32, the outputs that would make the pruned stream equal to the dense one.
        weight: `[t]` float32, of each token.
    """

    parts: list[Neurons]
    target: list[Tensor]
    weight: list[Tensor]


def examples_in_sequence(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    observe: Callable[[Neurons], None] | None = None,
) -> Iterator[dict[FFN, Examples]]:
    """What each FFN should learn, layer by layer; the caller prunes the FFNs of a layer before asking for the next.

    The dense and the pruned stream run side by side. Let h be the dense hidden states after a layer and e what the
    pruned stream lacks of them. The FFNs k of the layer should output `share_k * e` more than the dense FFNs would for
    the same input; `share_k = gain_k / sum gain^2` is the smallest change that adds up to e. Each token weighs
    `gain_k^2 / |h|^2`: unweighted, a few tokens of massive norm would decide the fit.

    Args:
        batches: windows of tokens `[B, L]`.
        observe: gets each FFN in the dense stream, batch by batch.

    Memory, on the model's device: the hidden states of all tokens, twice; and for one layer the neurons, inputs,
    outputs and targets of its FFNs.
    """
    dense = Stream(model, ffns, batches)
    pruned = dense.copy()
    for index, stage in enumerate(dense.stages):
        examples = {ffn: Examples([], [], []) for ffn in stage.ffns}
        passes = []
        for ahead, behind in zip(dense.passes(index, advance=True), pruned.passes(index), strict=True):
            if observe is not None:
                for part in ahead.parts:
                    observe(part)
            lacking = ahead.outcome - behind.outcome
            certainty = ahead.outcome.square().mean(1).clamp_min(1e-12).reciprocal()
            shares = _shares(behind, lacking, dense.forms[index])
            for part, gain, share in zip(behind.parts, behind.gains, shares, strict=True):
                rows = slice(None) if part.token is None else part.token
                output = part.added.float()
                bias = part.ffn.output.bias
                if part.ffn.is_routed and bias is not None:  # which is added to the product later
                    output = output + bias.detach().float()
                target, weight = output + share * lacking[rows], certainty[rows] * gain.square().mean(1)
                examples[part.ffn].parts.append(part)
                examples[part.ffn].target.append(target)
                examples[part.ffn].weight.append(weight)
            passes.append(behind)
        yield examples
        if index + 1 < len(dense.stages):
            pruned.resume(index, passes)
        passes.clear()  # free the memory even if the caller keeps a reference
        for columns in examples.values():
            for column in columns:
                column.clear()


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
    remaining = iter(kept)
    with restored_on_error(ffns), evaluation_mode(model):
        for examples in examples_in_sequence(model, ffns, batches):
            keep = {ffn: next(remaining) for ffn in examples}
            prune_and_fit(keep, examples, refine=refine, seed=seed)


def prune_and_fit(
    keep: Mapping[FFN, Tensor], examples: Mapping[FFN, Examples], *, refine: bool, seed: int
) -> None:
    """Prune the FFNs of one layer, with the output projections that come closest to the targets.

    Args:
        keep: for each FFN the neurons to keep, ascending.
        refine: whether to train all projections on the same error afterwards (`pruning.repair.refine`).
        seed: for the order of tokens when refining.

    Raises:
        ValueError: activations that are not finite.
    """
    prune_ffns([Plan(ffn, neurons, fit(ffn, neurons, examples[ffn])) for ffn, neurons in keep.items()])
    for ffn in keep if refine else ():
        parts, target, weight = examples[ffn]
        read = torch.cat([part.read for part in parts])
        refine_ffn(ffn, read, torch.cat(target), torch.cat(weight), seed=seed)


def fit(ffn: FFN, keep: Tensor, examples: Examples) -> Solution:
    """The output projection of the neurons `keep` that comes closest to the targets, in closed form.

    With these neurons z and the target t, it minimizes the weighted sum of `|t - W z - b|^2` over tokens, with a ridge
    penalty on the distance from the dense weights. b is fitted only if the dense projection has a bias; we measured
    no gain from adding one elsewhere. An expert that too few tokens reach keeps its dense weights.

    Raises:
        ValueError: activations that are not finite.
    """
    dense = ffn.output.weight.detach()[:, keep].float()  # [d, kept]
    bias = ffn.output.bias
    if ffn.is_routed and sum(len(part.z) for part in examples.parts) < MIN_TOKENS:
        return Solution(dense, bias)
    if bias is not None:
        dense = torch.cat([dense, bias.detach().float()[:, None]], dim=1)
    size = dense.shape[1]
    gram = dense.new_zeros(size, size)
    cross = dense.new_zeros(size, len(dense))
    for part, target, weight in zip(*examples, strict=True):
        z = part.z[:, keep].float()
        if bias is not None:
            z = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        weighted = z * weight[:, None]
        gram.addmm_(weighted.t(), z)
        cross.addmm_(weighted.t(), target)
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise ValueError(
            f"{ffn.name}: expected finite activations in the pruned model, got NaN or infinite ones"
        )
    missing = cross - gram @ dense.t()
    change = ridge(gram, missing, PULL_TO_DENSE, n_free=int(bias is not None)).t().float()
    fitted = dense + change  # [d, size]
    return Solution(fitted[:, : len(keep)], None if bias is None else fitted[:, -1])


def _shares(behind: LayerPass, lacking: Tensor, form: Form) -> list[Tensor]:
    """For each FFN that ran, the share of what is lacking that it should add to its output, per unit.

    None behind a norm, where the FFN should do what the dense one does with the same input: on Gemma 3 270M, making up
    for earlier layers through the linearized norm did more harm than good.
    """
    if form.norm is not None:
        return [torch.zeros_like(gain) for gain in behind.gains]
    total = torch.zeros_like(lacking[:, :1])
    for part, gain in zip(behind.parts, behind.gains, strict=True):
        if part.token is None:
            total += gain.square()
        else:
            total.index_add_(0, part.token, gain.square())
    total = total.clamp_min(1e-30)
    return [
        gain / (total if part.token is None else total[part.token])
        for part, gain in zip(behind.parts, behind.gains, strict=True)
    ]
