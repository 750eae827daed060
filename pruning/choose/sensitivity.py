"""How much the whole model suffers when one layer is halved: the weights of the layers in a budget."""

import math
from collections.abc import Sequence

from transformers import PreTrainedModel

from mikernels.options import Estimator
from pruning.choose.evidence import Evidence
from pruning.model.ffn import FFN
from pruning.model.snapshot import restored
from pruning.model.surgery import complement
from pruning.observe.batches import Batch
from pruning.observe.divergence import DenseOutputs
from pruning.repair.separate import prune_separately
from pruning.threshold import null_threshold


def by_mi(evidence: Sequence[Evidence], *, estimator: Estimator, nodes: int) -> list[float]:
    """The square root of each layer's median mutual information above that of independent neurons. Needs no extra
    measurement.

    Layers whose neurons share much information are sensitive: on SmolLM2-135M the perplexity with this budget at 50 %
    lies between those with the uniform budget and with `by_kl` (`benchmarks/results/quality.md`).
    """
    levels = []
    for layer in evidence:
        floor = null_threshold("null:0.5", layer.statistics.sample, estimator=estimator, nodes=nodes)
        levels.append(max(layer.median_mi - floor, 0.0))
    return roots(levels)


def roots(levels: Sequence[float]) -> list[float]:
    """Square roots of non-negative levels, of which none counts as less than 1 % of the largest: no layer is free, and
    all layers are equal if all levels are 0."""
    least = 0.01 * max(levels, default=0.0) or 1.0
    return [max(level, least) ** 0.5 for level in levels]


def by_kl(evidence: Sequence[Evidence]) -> list[float]:
    """The square root of the divergence from the dense model when only that layer is halved (`halved_divergences`).

    Raises:
        ValueError: the divergence was not measured.
    """
    divergence = [layer.divergence for layer in evidence if layer.divergence is not None]
    if len(divergence) < len(evidence):
        raise ValueError(
            f"evidence: expected the divergence of {len(evidence)} layers, got {len(divergence)}"
        )
    return [value**0.5 for value in divergence]


def halved_divergences(
    model: PreTrainedModel, ffns: Sequence[FFN], evidence: Sequence[Evidence], batches: Sequence[Batch]
) -> list[float]:
    """For each FFN the divergence of the model (`pruning.observe.divergence`) when only that one is halved.

    The first half of the layer's conditional-MI order is dropped and repaired by least squares. Costs a forward pass
    over `batches` per layer; the model is unchanged afterwards.

    Raises:
        ValueError: the outputs with a halved layer are not finite.
    """
    dense = DenseOutputs(model, batches)
    measured = []
    for ffn, layer in zip(ffns, evidence, strict=True):
        keep = complement(layer.order[: ffn.width // 2], ffn.width)
        with restored([ffn]):
            prune_separately([ffn], [keep], [layer.statistics], "lstsq")
            divergence = dense.divergence()
        if not math.isfinite(divergence):
            raise ValueError(
                f"{ffn.name}: expected finite outputs of the model with half of these neurons, got NaN or infinite "
                "ones; use budget='mi', which does not need them"
            )
        measured.append(divergence)
    return measured
