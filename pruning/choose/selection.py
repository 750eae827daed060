"""Select the neurons to keep in each layer, by the settings."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from mikernels.ranks import ALONE, Ranks
from pruning.choose import sensitivity
from pruning.choose.budget import allocate, kept_width, least_multiple
from pruning.choose.candidates import divergences
from pruning.choose.clusters import cluster_neurons
from pruning.choose.evidence import Evidence
from pruning.choose.explain import PrunedLayer, explain, unexplained
from pruning.choose.random_pairs import random_pairs
from pruning.choose.scores import ascending, random_order, redundancy_order, saliency_of
from pruning.model.ffn import FFN
from pruning.model.surgery import complement
from pruning.observe.batches import Batch
from pruning.progress import track
from pruning.settings import Settings
from pruning.threshold import null_threshold


class Decision(NamedTuple):
    """What is decided for all layers together.

    Attributes:
        widths: neurons to keep in each layer.
        sensitivities: of the model to each layer, which determined them.
        seed: of random criteria: that of the best candidate.
        candidates: the divergence of each candidate from the dense model, by seed; empty if there is only one.
    """

    widths: list[int]
    sensitivities: list[float]
    seed: int
    candidates: dict[int, float]


def decide(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    evidence: Sequence[Evidence],
    batches: Sequence[Batch],
    settings: Settings,
    *,
    progress: bool = False,
) -> Decision:
    """Decide the widths, and compare the candidates if there are several.

    Args:
        evidence: not used for one candidate with the uniform budget.
        batches: windows of tokens `[B, L]` to compare candidates on; the model is unchanged afterwards.
    """
    widths, sensitivities = _widths(ffns, evidence, settings)
    divergence: dict[int, float] = {}
    if settings.candidates > 1:
        seeds = range(settings.seed, settings.seed + settings.candidates)
        by_layer = [
            _kept(ffn, layer, width, settings, seeds)
            for ffn, layer, width in zip(ffns, evidence, widths, strict=True)
        ]
        candidates = track(list(zip(*by_layer, strict=True)), "try", show=progress)
        measured = divergences(model, ffns, candidates, evidence, batches, settings.repair)
        divergence = dict(zip(seeds, measured, strict=True))
    best = min(divergence, key=divergence.__getitem__, default=settings.seed)
    return Decision(widths, sensitivities, best, divergence)


def select(
    ffn: FFN,
    evidence: Evidence,
    width: int,
    sensitivity: float,
    settings: Settings,
    *,
    seed: int,
    ranks: Ranks = ALONE,
    reasons: bool = True,
    picture: bool = False,
) -> PrunedLayer:
    """Select the neurons to keep in one layer, and explain the selection.

    Args:
        width, sensitivity, seed: see `Decision`.
        ranks: processes that have the same evidence: the first one selects, and all explain.
        reasons: whether to measure them.
        picture: whether to take a closer look (`pruning.choose.picture`).
    """
    device = ffn.output.weight.device
    ((kept,),) = ranks.each_once([lambda: _kept(ffn, evidence, width, settings, [seed])], device)
    if not reasons:
        return unexplained(ffn, evidence, kept, sensitivity)
    return explain(ffn, evidence, kept, sensitivity, settings, ranks, picture=picture)


def _widths(
    ffns: Sequence[FFN], evidence: Sequence[Evidence], settings: Settings
) -> tuple[list[int], list[float]]:
    """The number of neurons to keep in each layer, and the sensitivity that determined it."""
    if settings.budget == "uniform":
        widths = [kept_width(ffn, settings.ratio, settings) for ffn in ffns]
        return widths, [1.0] * len(ffns)
    if settings.budget == "mi":
        weights = sensitivity.by_mi(evidence, estimator=settings.estimator, nodes=settings.nodes)
    else:
        weights = sensitivity.by_kl(evidence)
    widths = allocate(
        [layer.damage.clone() for layer in evidence],  # without the rest of the evidence
        weights,
        width=ffns[0].width,
        ratio=settings.ratio,
        multiple_of=least_multiple(settings),
        max_layer_ratio=settings.max_layer_ratio,
    )
    return widths, weights


def _kept(
    ffn: FFN, evidence: Evidence, n_keep: int, settings: Settings, seeds: Sequence[int]
) -> list[Tensor]:
    """The neurons of one layer that each candidate keeps."""
    n_drop = ffn.width - n_keep
    if settings.criterion == "random-pairs" and evidence.statistics.is_enough:
        sample = evidence.statistics.sample
        threshold = _threshold(evidence, settings)
        cluster = None if settings.clusters == 1 else cluster_neurons(sample, settings.clusters)
        orders = [
            random_pairs(evidence.mi, n_drop, threshold=threshold, seed=seed, cluster=cluster)
            for seed in seeds
        ]
    else:
        orders = [_order(ffn, evidence, settings)] * len(seeds)
    return [complement(order[:n_drop].to(ffn.output.weight.device), ffn.width) for order in orders]


def _order(ffn: FFN, evidence: Evidence, settings: Settings) -> Tensor:
    """The order of dropping, by a criterion whose order serves every width."""
    if settings.criterion == "conditional-mi" or not evidence.statistics.is_enough:
        return evidence.order
    if settings.criterion == "random":
        return random_order(ffn.width, seed=settings.seed)
    saliency = saliency_of(ffn, evidence.statistics, settings.criterion)
    if settings.criterion == "pairwise-mi":
        return redundancy_order(evidence.mi, saliency)
    return ascending(saliency)


def _threshold(evidence: Evidence, settings: Settings) -> float:
    """The threshold of random-pairs for one layer, nats."""
    if isinstance(settings.threshold, str):
        return null_threshold(
            settings.threshold,
            evidence.statistics.sample,
            estimator=settings.estimator,
            nodes=settings.nodes,
        )
    return evidence.median_mi if settings.threshold is None else settings.threshold
