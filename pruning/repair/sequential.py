"""Repair in the order of the layers: fit each pruned FFN to the hidden states of the dense model after its layer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mikernels.ranks import ALONE, Ranks
from pruning.model.ffn import FFN
from pruning.model.forward import body_of
from pruning.model.layers import IN_MEMORY, Layers, layer_list
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.observe.batches import Batch, by_name
from pruning.observe.capture import MIN_TOKENS, Recorder, Statistics, prepare_experts
from pruning.observe.moments import add_gram, add_product, mirror
from pruning.observe.neurons import Neurons
from pruning.repair.form import Form
from pruning.repair.memory_budget import NO_LIMIT, MemoryBudget
from pruning.repair.refine import held_back, refine_ffn
from pruning.repair.ridge import adapted_ridge
from pruning.repair.stream import LayerPass, Stream

STEP = 0.5
"""Share of what the pruned stream lacks that a layer corrects: what layers learn of the errors of earlier ones carries
over to other text only in part. On SmolLM2-135M at 50 % (16,384 tokens, geometric mean of perplexity on four texts,
relative to the dense model's) 1, 3/4, 1/2 and 1/4 give 2.281, 2.253, 2.239 and 2.256, and with refining 1 and 1/2 give
2.045 and 2.032 (runs of a script). A share of 0 loses, at 20 %, what sequential repair gains over least squares."""
NORM_DAMPING = 0.3
"""Behind a norm: damping of the step, relative to the median gain of a token's dimensions."""


Parts = tuple[list[Tensor], list[Tensor]]
"""By batch, of the tokens that are learned from, and of those that are held back."""


class Examples:
    """What one FFN should learn: the outputs that would make the pruned stream equal to the dense one.

    Only the moments of its neurons are kept, unless it is refined: the neurons of all tokens would take most of the
    memory of a run. To refine it, some tokens are held back (`pruning.repair.refine`), which are not in the moments
    either.

    Attributes:
        gram: `[N, N]` float32, the weighted sum of the products of its neurons in the pruned stream; if it has a bias,
            a neuron that is always 1 comes last.
        cross: `[N, d]` float32, that of the products of its neurons with the targets.
        energy: `[]` float64, that of the squares of the targets.
        n_tokens, n_learned: how many, with and without those that are held back.
        read, target, weight: by batch of t tokens its inputs `[t, d]`, the targets `[t, d]` float32 and the weights of
            the tokens `[t]` float32, first in a list of what is learned, then in one of what is held back; empty unless
            it is refined.
    """

    def __init__(self, ffn: FFN, *, n_refined: int | None = None, budget: MemoryBudget = NO_LIMIT) -> None:
        """Args:
        n_refined: how many tokens there will be, if it is to be refined.
        budget: for what is then kept.
        """
        self._ffn, self._budget = ffn, budget
        self._held = None if n_refined is None else held_back(n_refined)
        size = ffn.width + (ffn.output.bias is not None)
        self.gram = torch.zeros(size, size, device=ffn.output.weight.device)
        self.cross = self.gram.new_zeros(size, ffn.output.out_features)
        self.energy = self.gram.new_zeros((), dtype=torch.float64)
        self.n_tokens = self.n_learned = 0
        self.read: Parts = [], []
        self.target: Parts = [], []
        self.weight: Parts = [], []

    def add(self, part: Neurons, target: Tensor, weight: Tensor) -> None:
        """Add a batch."""
        z = part.z.float()
        if self._ffn.output.bias is not None:
            z = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        if self._held is not None:
            held = self._held[self.n_tokens : self.n_tokens + len(z)].to(z.device)
            learned = ~held
            for i, rows in enumerate((learned, held)):
                self.read[i].append(self._budget.keep(part.read[rows]))
                self.target[i].append(self._budget.keep(target[rows]))
                self.weight[i].append(weight[rows])
            z, target, weight = z[learned], target[learned], weight[learned]
        self.n_tokens += len(part.z)
        self.n_learned += len(z)
        root = weight.sqrt()[:, None]
        z, weighted = z * root, target * root
        add_gram(self.gram, z)
        add_product(self.cross, z, weighted)
        self.energy += weighted.square().sum(dtype=torch.float64)

    def complete(self) -> None:
        """No batch follows."""
        mirror(self.gram)

    def take(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """`read`, `target` and `weight` of all batches, which are then let go; and how many tokens at their ends are
        held back."""
        read = self._budget.join([*self.read[0], *self.read[1]])
        self.read = [], []
        target = self._budget.join([*self.target[0], *self.target[1]])
        self.target = [], []
        return read, target, torch.cat([*self.weight[0], *self.weight[1]]), sum(map(len, self.weight[1]))

    def clear(self) -> None:
        """Free the memory, even if the caller keeps a reference."""
        del self.gram, self.cross, self.read, self.target, self.weight


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
    refine: bool = False,
    write: bool = True,
    memory_budget: int | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Visit]:
    """Run the model layer by layer; the caller prunes the FFNs of a layer before asking for the next.

    The dense and the pruned stream run side by side. Let h be the dense hidden states after a layer and e what the
    pruned stream lacks of them. The FFNs k of the layer should output `STEP * share_k * e` more than the dense FFNs
    would for the same input; `share_k = gain_k / sum gain^2` is the smallest change that adds up to e. Each token
    weighs `gain_k^2 / |h|`, halfway between absolute errors, of which a few tokens of massive norm may have the most,
    and relative ones, which neglect these tokens (docs/quality.md has the figures).

    Args:
        batches: windows of tokens `[B, L]`.
        source: where the weights of the layers are.
        sample_size, seed: of the sample in the statistics (`pruning.observe.capture`); None for no statistics.
        fit: whether to run the pruned stream and give examples.
        refine: whether the examples are also for refining.
        write: whether what the layers are when the caller asks for the next one is the result.
        memory_budget: bytes on the device for what is kept of all tokens; None for no limit.
        ranks: processes that have batches of their own; all get the statistics of all batches, but their own examples.

    Memory, on the model's device: for one layer the moments of its FFNs, twice. Within the budget: the hidden states of
    all tokens, twice; for one layer the inputs of its FFNs, and what bypasses them; with `refine` also their targets.
    """
    budget = MemoryBudget(memory_budget, source.scratch)
    with source.around(body_of(model, by_name(batches[0]))):
        dense = Stream(model, ffns, batches, source, budget)
    pruned = dense.copy() if fit else dense
    streams = [dense, pruned] if fit else [dense]
    done, hidden = source.complete_before(len(streams), budget.keep) if write else (0, [])
    for stream, behind in zip(streams, hidden, strict=False):  # of an earlier run, if there was one
        stream.hidden = behind
    for index, layer in enumerate(dense.layers):
        if index < done:
            continue
        with source.held(layer, write=write):
            if dense.ffns[index]:
                yield from _visit_layer(
                    dense, pruned, index, sample_size, budget, seed=seed, fit=fit, refine=refine, ranks=ranks
                )
            elif index < dense.last:
                for stream in streams:
                    stream.advance(index)
        if write:
            source.completed(layer, [stream.hidden for stream in streams])


def visit_without_running(model: PreTrainedModel, ffns: Sequence[FFN], source: Layers) -> Iterator[Visit]:
    """The layers with their weights, for repairs that need no more than the statistics of the dense model."""
    layers = list(dict.fromkeys(ffn.layer for ffn in ffns)) if source.in_memory else layer_list(model, ffns)
    for layer in layers[source.complete_before(0, NO_LIMIT.keep)[0] :]:
        with source.held(layer, write=True):
            if found := [ffn for ffn in ffns if ffn.layer is layer]:
                yield Visit(found, [], {})
        source.completed(layer, [])


def _visit_layer(
    dense: Stream,
    pruned: Stream,
    index: int,
    sample_size: int | None,
    budget: MemoryBudget,
    *,
    seed: int,
    fit: bool,
    refine: bool,
    ranks: Ranks,
) -> Iterator[Visit]:
    """Run a layer with FFNs to prune, and move the streams on; see `visit_layers`."""
    ffns = dense.ffns[index]
    recorders = {}
    if sample_size is not None:
        recorders = {ffn: Recorder.of(ffn, sample_size, seed=seed, ranks=ranks) for ffn in ffns}
    n_refined = dense.count_rows() if refine else None
    examples = {ffn: Examples(ffn, n_refined=n_refined, budget=budget) for ffn in ffns if fit}
    bypasses = []
    behind = pruned.passes(index) if fit else repeat(None)
    start = end = 0
    for batch, (ahead, after) in enumerate(zip(dense.passes(index, advance=True), behind, strict=fit)):
        start, end = end, end + dense.tokens[batch]
        for part in ahead.parts if recorders else ():
            recorders[part.ffn].add(part.z, part.gates, part.tokens(start, end))
        if after is not None:
            _add_examples(examples, ahead, after, dense.find_form(index))
            if index < dense.last:
                bypasses.append(pruned.bypass(index, batch, after))
        del ahead, after  # free the neurons before the next batch needs as much
    for learned in examples.values():
        learned.complete()
    statistics = [recorder.finish() for recorder in recorders.values()]
    most = max((layer.n_tokens for layer in statistics), default=0)
    statistics = prepare_experts(list(recorders), statistics, most=most)
    recorders.clear()
    yield Visit(ffns, statistics, examples)
    if fit and index < dense.last:
        pruned.resume(index, bypasses)
    for learned in examples.values():
        learned.clear()


def _add_examples(examples: Mapping[FFN, Examples], ahead: LayerPass, behind: LayerPass, form: Form) -> None:
    """Add what the FFNs of a layer should learn from one batch, in the dense stream and in the pruned one behind it."""
    lacking = ahead.outcome - behind.outcome
    norm = ahead.outcome.square().mean(1).clamp_min(1e-12).sqrt()
    shares = _shares(behind, lacking, form)
    for part, gain, share in zip(behind.parts, behind.gains, shares, strict=True):
        rows = slice(None) if part.token is None else part.token
        output = part.added.float()
        bias = part.ffn.output.bias
        if part.ffn.is_routed and bias is not None:  # which is added to the product later
            output = output + bias.detach().float()
        weight = gain.square().mean(1) / norm[rows]
        examples[part.ffn].add(part, output + STEP * share * lacking[rows], weight)


def prune_and_fit(
    keep: Mapping[FFN, Tensor],
    examples: Mapping[FFN, Examples],
    *,
    refine: bool,
    seed: int,
    ranks: Ranks = ALONE,
) -> list[tuple[float, float]]:
    """Prune the FFNs of one layer, with the output projections that come closest to the targets.

    Args:
        keep: for each FFN the neurons to keep, ascending.
        refine: whether to train all projections on the same error afterwards (`pruning.repair.refine`).
        seed: for the order of tokens when refining.
        ranks: processes that have examples of their own, and together fit to all of them.

    Returns:
        For each FFN its error (`Solution`) before refining, and what refining made of that on held-back tokens
        (`refine_ffn`); NaN without.

    Raises:
        ValueError: activations that are not finite.
    """
    cuts = [Cut(ffn, neurons, fit(ffn, neurons, examples[ffn], ranks)) for ffn, neurons in keep.items()]
    prune_ffns(cuts)
    refined = dict.fromkeys(keep, math.nan)
    for ffn in keep if refine else ():
        *tokens, n_held = examples[ffn].take()
        refined[ffn] = refine_ffn(ffn, *tokens, n_held=n_held, seed=seed, ranks=ranks)
    return [(cut.solution.error, refined[cut.ffn]) for cut in cuts]


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
    if ffn.is_routed and ranks.total(examples.n_tokens) < MIN_TOKENS:
        return Solution(dense, bias)
    used = keep
    if bias is not None:
        dense = torch.cat([dense, bias.detach().float()[:, None]], dim=1)
        used = torch.cat([keep, keep.new_tensor([ffn.width])])
    gram, cross = examples.gram[used][:, used], examples.cross[used]
    ranks.add(gram, cross)
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise ValueError(
            f"{ffn.name}: expected finite activations in the pruned model, got NaN or infinite ones"
        )
    energy, n_learned = ranks.total(float(examples.energy)), int(ranks.total(examples.n_learned))

    def left(weights: Tensor, missing: Tensor) -> float:
        return max(energy - float((weights.t() * (cross + missing)).sum(dtype=torch.float64)), 0.0)

    missing = cross - gram @ dense.t()
    change = adapted_ridge(gram, missing, left(dense, missing), n_learned, n_free=int(bias is not None))
    fitted = dense + change.t().float()  # [d, size]
    error = left(fitted, cross - gram @ fitted.t()) / energy if energy else math.nan
    return Solution(fitted[:, : len(keep)], None if bias is None else fitted[:, -1], error)


def _shares(behind: LayerPass, lacking: Tensor, form: Form) -> list[Tensor]:
    """For each FFN that ran, what it should add to its output for each unit that is lacking.

    Behind a norm the gain of a dimension may be next to nothing, and the norm changes with what is added. So it is a
    damped Gauss-Newton step there: `gain / (gain^2 + floor^2)`.
    """
    if form.norm is not None:
        shares = []
        for gain in behind.gains:
            floor = NORM_DAMPING * gain.abs().median(1, keepdim=True).values
            shares.append(gain / (gain.square() + floor.square()).clamp_min(1e-30))
        return shares
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
