"""What stays in each layer by the settings, and why the rest goes."""

from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from pruning.choose import criteria, sensitivity
from pruning.choose.budget import allocate, uniform_width
from pruning.choose.candidates import divergences
from pruning.choose.clusters import cluster_neurons
from pruning.choose.evidence import Evidence
from pruning.model.families import FFN
from pruning.observe.capture import Statistics
from pruning.progress import track
from pruning.repair.closed_form import complement, explained_variance
from pruning.report.manifest import Layer
from pruning.settings import Criterion, Settings
from pruning.threshold import null_threshold


def choose(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    evidence: Sequence[Evidence],
    batches: Sequence[Tensor],
    settings: Settings,
    *,
    progress: bool = False,
) -> tuple[list[Layer], dict[int, float]]:
    """What stays and what goes, layer by layer; of several candidates, by seed, how far each is from the dense model.

    Args:
        batches: windows of tokens `[B, L]` on which candidates are compared; the model is as it was afterwards.
    """
    widths, sensitivities = _widths(ffns, evidence, settings)
    seeds = range(settings.seed, settings.seed + settings.candidates)
    chosen = [
        _kept(ffn, known, width, settings, seeds)
        for ffn, known, width in zip(ffns, evidence, widths, strict=True)
    ]  # layer by layer, candidate by candidate
    candidates = list(zip(*chosen, strict=True))
    divergence: dict[int, float] = {}
    if len(candidates) > 1:
        found = divergences(
            model,
            ffns,
            track(candidates, "try", show=progress),
            [known.statistics for known in evidence],
            batches,
            settings.repair,
        )
        divergence = dict(zip(seeds, found, strict=True))
    best = min(divergence, key=divergence.__getitem__, default=settings.seed)
    layers = [
        _explain(ffn, known, keep, sensitive, settings)
        for ffn, known, keep, sensitive in zip(
            ffns, evidence, candidates[best - settings.seed], sensitivities, strict=True
        )
    ]
    return layers, divergence


def _widths(
    ffns: Sequence[FFN], evidence: Sequence[Evidence], settings: Settings
) -> tuple[list[int], list[float]]:
    """Neurons that stay in each layer, and the sensitivity that decided it."""
    if settings.budget == "uniform":
        widths = [uniform_width(ffn.width, settings.ratio, settings.multiple_of) for ffn in ffns]
        return widths, [1.0] * len(ffns)
    if settings.budget == "mi":
        weights = sensitivity.by_mi(evidence, estimator=settings.estimator, nodes=settings.nodes)
    else:
        weights = sensitivity.by_kl(evidence)
    widths = allocate(
        [known.damage for known in evidence],
        weights,
        ratio=settings.ratio,
        multiple_of=settings.multiple_of,
        max_layer_ratio=settings.max_layer_ratio,
    )
    return widths, weights


def _kept(ffn: FFN, known: Evidence, n_keep: int, settings: Settings, seeds: Iterable[int]) -> list[Tensor]:
    """The neurons that stay in one layer, by each candidate."""
    n_drop = ffn.width - n_keep
    if settings.criterion == "random-pairs":
        sample = known.statistics.sample
        threshold = _nats(settings, len(sample), known.median_mi)
        cluster = None if settings.clusters == 1 else cluster_neurons(sample, settings.clusters)
        orders = [
            criteria.random_pairs(known.mi, n_drop, threshold=threshold, seed=seed, cluster=cluster)
            for seed in seeds
        ]
    else:
        orders = [_order(ffn, known, settings)]
    return [complement(order[:n_drop].to(known.mi.device), ffn.width) for order in orders]


def _order(ffn: FFN, known: Evidence, settings: Settings) -> Tensor:
    """What goes first, by a criterion whose order serves every width."""
    if settings.criterion == "conditional-mi":
        return known.order
    if settings.criterion == "random":
        return criteria.random_order(ffn.width, seed=settings.seed)
    saliency = _saliency(ffn, known.statistics, settings.criterion)
    if settings.criterion == "pairwise-mi":
        return criteria.redundancy_saliency(known.mi, saliency)
    return criteria.ascending(saliency)


def _explain(ffn: FFN, known: Evidence, kept: Tensor, sensitive: float, settings: Settings) -> Layer:
    """What goes from one layer, and why."""
    mi, statistics = known.mi, known.statistics
    saliency = _saliency(ffn, statistics, settings.criterion)
    dropped = complement(kept, ffn.width)
    best = mi[dropped][:, kept].max(1)
    null = null_threshold(
        "null:0.999", len(statistics.sample), estimator=settings.estimator, nodes=settings.nodes
    )
    return Layer(
        name=ffn.name,
        kept=kept,
        dropped=dropped,
        partner=kept[best.indices],
        mi=best.values,
        linear_r2=explained_variance(statistics, kept, dropped),
        saliency=saliency[dropped],
        median_mi=known.median_mi,
        null_mi=null,
        sensitivity=sensitive,
    )


def _nats(settings: Settings, n_samples: int, median_mi: float) -> float:
    """The threshold of a layer, nats."""
    if isinstance(settings.threshold, str):
        return null_threshold(
            settings.threshold, n_samples, estimator=settings.estimator, nodes=settings.nodes
        )
    return median_mi if settings.threshold is None else settings.threshold


def _saliency(ffn: FFN, statistics: Statistics, criterion: Criterion) -> Tensor:
    if criterion == "magnitude":
        return criteria.magnitude(ffn)
    if criterion == "wanda":
        return criteria.wanda(ffn, statistics)
    return criteria.fluctuation(ffn, statistics)
