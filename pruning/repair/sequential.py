"""Repair in the order of the layers: fit each pruned FFN to the hidden states of the dense model after its layer."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mikernels.ranks import ALONE, Ranks
from pruning.model.ffn import FFN
from pruning.model.layers import IN_MEMORY, Layers, layer_list
from pruning.model.surgery import Plan, Solution, prune_ffns
from pruning.observe.batches import Batch
from pruning.observe.capture import MIN_TOKENS, Recorder, Statistics, prepare_experts
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


class Visit(NamedTuple):
    """A layer that has its weights, and what was seen of its FFNs.

    Attributes:
        ffns: to prune.
        statistics: of their activations in the dense stream, in the same order; empty if not asked for.
        examples: what they should learn; empty if not asked for.
    """

    ffns: list[FFN]
    statistics: list[Statistics]
    examples: dict[FFN, Examples]


def visit_layers(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    source: Layers = IN_MEMORY,
    *,
    sample_size: int | None = None,
    seed: int = 0,
    fit: bool = True,
    write: bool = True,
    ranks: Ranks = ALONE,
) -> Iterator[Visit]:
    """Run the model layer by layer; the caller prunes the FFNs of a layer before asking for the next.

    The dense and the pruned stream run side by side. Let h be the dense hidden states after a layer and e what the
    pruned stream lacks of them. The FFNs k of the layer should output `share_k * e` more than the dense FFNs would for
    the same input; `share_k = gain_k / sum gain^2` is the smallest change that adds up to e. Each token weighs
    `gain_k^2 / |h|^2`: unweighted, a few tokens of massive norm would decide the fit.

    Args:
        batches: windows of tokens `[B, L]`.
        source: where the weights of the layers are.
        sample_size, seed: of the sample in the statistics (`pruning.observe.capture`); None for no statistics.
        fit: whether to run the pruned stream and give examples.
        write: whether what the layers are when the caller asks for the next one is the result.
        ranks: processes that have batches of their own; all get the statistics of all batches, but their own examples.

    Memory, on the model's device: the hidden states of all tokens, twice; and for one layer the neurons, inputs,
    outputs and targets of its FFNs, and their moments.
    """
    dense = Stream(model, ffns, batches, source)
    pruned = dense.copy()
    streams = [dense, pruned] if fit else [dense]
    done, hidden = source.complete_before(len(streams)) if write else (0, [])
    for stream, behind in zip(streams, hidden, strict=False):  # of an earlier run, if there was one
        stream.hidden = behind
    for index, layer in enumerate(dense.layers):
        if index < done:
            continue
        with source.held(layer, write=write):
            if dense.ffns[index]:
                yield from _visit_layer(dense, pruned, index, sample_size, seed=seed, fit=fit, ranks=ranks)
            elif index < dense.last:
                for stream in streams:
                    stream.advance(index)
        if write:
            source.completed(layer, [stream.hidden for stream in streams])


def visit_without_running(model: PreTrainedModel, ffns: Sequence[FFN], source: Layers) -> Iterator[Visit]:
    """The layers with their weights, for repairs that need no more than the statistics of the dense model."""
    layers = layer_list(model, ffns) if source.on_disk else list(dict.fromkeys(ffn.layer for ffn in ffns))
    for layer in layers[source.complete_before(0)[0] :]:
        with source.held(layer, write=True):
            if found := [ffn for ffn in ffns if ffn.layer is layer]:
                yield Visit(found, [], {})
        source.completed(layer, [])


def _visit_layer(
    dense: Stream,
    pruned: Stream,
    index: int,
    sample_size: int | None,
    *,
    seed: int,
    fit: bool,
    ranks: Ranks,
) -> Iterator[Visit]:
    """Run a layer with FFNs to prune, and move the streams on; see `visit_layers`."""
    ffns = dense.ffns[index]
    recorders = {}
    if sample_size is not None:
        recorders = {ffn: Recorder.of(ffn, sample_size, seed=seed, ranks=ranks) for ffn in ffns}
    examples = {ffn: Examples([], [], []) for ffn in ffns if fit}
    passes = []
    behind = pruned.passes(index) if fit else repeat(None)
    for ahead, after in zip(dense.passes(index, advance=True), behind, strict=fit):
        for part in ahead.parts if recorders else ():
            recorders[part.ffn].add(part.z, part.gates)
        if after is not None:
            _add_examples(examples, ahead, after, dense.find_form(index))
            passes.append(after)
    statistics = [recorder.finish() for recorder in recorders.values()]
    most = max((layer.n_tokens for layer in statistics), default=0)
    statistics = prepare_experts(list(recorders), statistics, most=most)
    recorders.clear()
    yield Visit(ffns, statistics, examples)
    if fit and index < dense.last:
        pruned.resume(index, passes)
    for columns in examples.values():  # free the memory even if the caller keeps a reference
        for column in columns:
            column.clear()


def _add_examples(examples: Mapping[FFN, Examples], ahead: LayerPass, behind: LayerPass, form: Form) -> None:
    """Add what the FFNs of a layer should learn from one batch, in the dense stream and in the pruned one behind it."""
    lacking = ahead.outcome - behind.outcome
    certainty = ahead.outcome.square().mean(1).clamp_min(1e-12).reciprocal()
    shares = _shares(behind, lacking, form)
    for part, gain, share in zip(behind.parts, behind.gains, shares, strict=True):
        rows = slice(None) if part.token is None else part.token
        output = part.added.float()
        bias = part.ffn.output.bias
        if part.ffn.is_routed and bias is not None:  # which is added to the product later
            output = output + bias.detach().float()
        examples[part.ffn].parts.append(part)
        examples[part.ffn].target.append(output + share * lacking[rows])
        examples[part.ffn].weight.append(certainty[rows] * gain.square().mean(1))


def prune_and_fit(
    keep: Mapping[FFN, Tensor],
    examples: Mapping[FFN, Examples],
    *,
    refine: bool,
    seed: int,
    ranks: Ranks = ALONE,
) -> None:
    """Prune the FFNs of one layer, with the output projections that come closest to the targets.

    Args:
        keep: for each FFN the neurons to keep, ascending.
        refine: whether to train all projections on the same error afterwards (`pruning.repair.refine`).
        seed: for the order of tokens when refining.
        ranks: processes that have examples of their own, and together fit to all of them.

    Raises:
        ValueError: activations that are not finite.
    """
    prune_ffns([Plan(ffn, neurons, fit(ffn, neurons, examples[ffn], ranks)) for ffn, neurons in keep.items()])
    for ffn in keep if refine else ():
        parts, target, weight = examples[ffn]
        read = torch.cat([part.read for part in parts])
        refine_ffn(ffn, read, torch.cat(target), torch.cat(weight), seed=seed, ranks=ranks)


def fit(ffn: FFN, keep: Tensor, examples: Examples, ranks: Ranks = ALONE) -> Solution:
    """The output projection of the neurons `keep` that comes closest to the targets, in closed form.

    With these neurons z and the target t, it minimizes the weighted sum of `|t - W z - b|^2` over tokens, with a ridge
    penalty on the distance from the dense weights. b is fitted only if the dense projection has a bias; we measured
    no gain from adding one elsewhere. An expert that too few tokens reach keeps its dense weights.

    Raises:
        ValueError: activations that are not finite.
    """
    dense = ffn.output.weight.detach()[:, keep].float()  # [d, kept]
    bias = ffn.output.bias
    if ffn.is_routed and ranks.total(sum(len(part.z) for part in examples.parts)) < MIN_TOKENS:
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
    ranks.add(gram, cross)
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
