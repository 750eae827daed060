"""Choosing, pruning and repairing layer after layer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from mikernels.ranks import ALONE, Ranks
from pruning.choose.evidence import Evidence, measure_ffn, order_neurons
from pruning.choose.explain import PrunedLayer
from pruning.choose.picture import MOST
from pruning.choose.selection import Decision, select
from pruning.model.ffn import FFN
from pruning.model.layers import IN_MEMORY, Layers, by_layer
from pruning.model.surgery import add_input_biases
from pruning.observe.batches import Batch
from pruning.progress import progress_bar, timed
from pruning.repair.separate import prune_separately
from pruning.repair.sequential import Visit, prune_and_fit, visit_layers, visit_without_running
from pruning.settings import Settings


def prune_layers(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Batch],
    evidence: Sequence[Evidence] | None,
    decision: Decision,
    settings: Settings,
    source: Layers = IN_MEMORY,
    *,
    complete: Sequence[PrunedLayer] = (),
    reasons: bool = True,
    ranks: Ranks = ALONE,
    seconds: dict[str, float],
    progress: bool = False,
) -> list[PrunedLayer]:
    """Choose, prune and repair layer by layer, in place.

    Args:
        evidence: of all FFNs; None to measure each layer when it is its turn.
        complete: the first layers, which an earlier run has completed.
        reasons: whether to measure why neurons are dropped.
        ranks: processes that have batches of their own, and end with the same layers.

    Returns:
        All layers, `complete` included.
    """
    layers = list(complete)
    visits = _visits(model, ffns, batches, settings, source, ranks, is_measured=evidence is not None)
    with progress_bar("prune", len(by_layer(ffns)), show=progress) as bar:
        while True:
            with timed(seconds, "capture" if evidence is None else "repair"):
                visit = next(visits, None)
            if visit is None:
                return layers
            pruned = _prune_layer(
                visit, evidence, len(layers), decision, settings, ranks, seconds, reasons=reasons
            )
            source.remember({f"{p.name}/{n}": t for p in pruned for n, t in p.tensors().items()})
            layers += pruned
            bar.update()


def _visits(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Batch],
    settings: Settings,
    source: Layers,
    ranks: Ranks,
    *,
    is_measured: bool,
) -> Iterator[Visit]:
    """The layers to prune; the model runs only if that is needed."""
    sequential = settings.repair == "sequential"
    if is_measured and not sequential:
        return visit_without_running(model, ffns, source)
    sample_size = None if is_measured else settings.sample_size
    return visit_layers(
        model,
        ffns,
        batches,
        source,
        sample_size=sample_size,
        seed=settings.seed,
        fit=sequential,
        refine=settings.refine,
        memory_budget=settings.memory_budget,
        ranks=ranks,
    )


def _prune_layer(
    visit: Visit,
    stored: Sequence[Evidence] | None,
    first: int,
    decision: Decision,
    settings: Settings,
    ranks: Ranks,
    seconds: dict[str, float],
    *,
    reasons: bool,
) -> list[PrunedLayer]:
    """Choose, prune and repair in one layer.

    Args:
        stored: the evidence of all FFNs, or None to measure that of this layer.
        first: the position of its first FFN among all.
    """
    positions = range(first, first + len(visit.ffns))
    if stored is None:
        with timed(seconds, "measure"):
            orders = order_neurons(visit.ffns, visit.statistics, settings, any_ratio=False, ranks=ranks)
            evidence = [
                measure_ffn(*found, settings, any_ratio=False, ranks=ranks)
                for found in zip(visit.ffns, visit.statistics, orders, strict=True)
            ]
        visit.statistics.clear()
    else:
        evidence = [stored[position] for position in positions]
    spacing = math.ceil(len(decision.widths) / MOST)
    with timed(seconds, "select"):
        layers = [
            select(
                ffn,
                layer,
                decision.widths[position],
                decision.sensitivities[position],
                settings,
                seed=decision.seed,
                ranks=ranks,
                reasons=reasons,
                picture=reasons and position % spacing == 0,
            )
            for ffn, layer, position in zip(visit.ffns, evidence, positions, strict=True)
        ]
    statistics = [layer.statistics for layer in evidence] if settings.repair != "sequential" else []
    del evidence  # free the memory before repair needs as much
    kept = [layer.kept for layer in layers]
    with timed(seconds, "repair"):
        if settings.repair == "sequential":
            keep = dict(zip(visit.ffns, kept, strict=True))
            errors = prune_and_fit(
                keep, visit.examples, refine=settings.refine, seed=settings.seed, ranks=ranks
            )
        else:
            found = prune_separately(visit.ffns, kept, statistics, settings.repair)
            errors = [(error, math.nan) for error in found]
            add_input_biases(visit.ffns)  # before the layer is written
        parts = [part for ffn in visit.ffns for part in ffn.projections]
        weights = [w for part in parts for w in (part.parameter, part.bias_parameter) if w is not None]
        ranks.copy_first(*dict.fromkeys(weights))  # whatever chips they were computed on
    return [
        replace(layer, repair_error=error, refined_error=refined)
        for layer, (error, refined) in zip(layers, errors, strict=True)
    ]
