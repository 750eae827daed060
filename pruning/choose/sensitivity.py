"""How much the model as a whole minds when one layer is halved: weights of the layers in a budget."""

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from mikernels.options import Estimator
from pruning.choose.evidence import Evidence
from pruning.model.families import FFN
from pruning.model.surgery import prune_separately, restored
from pruning.observe.divergence import Dense
from pruning.repair.closed_form import complement
from pruning.threshold import null_threshold


def by_mi(evidence: Sequence[Evidence], *, estimator: Estimator, nodes: int) -> list[float]:
    """The root of each layer's median mutual information over that of independent neurons. Costs nothing more.

    Layers whose neurons share much are layers that the model minds losing: on SmolLM2-135M such a budget lies between
    the uniform one and that by `by_kl` in perplexity at 50 % (`benchmarks/results/quality.md`).
    """
    levels = []
    for layer in evidence:
        floor = null_threshold("null:0.5", len(layer.statistics.sample), estimator=estimator, nodes=nodes)
        levels.append(max(layer.median_mi - floor, 0.0))
    return roots(levels)


def roots(levels: Sequence[float]) -> list[float]:
    """Weights of layers from what is known of each, not negative: no layer is free, and if all are 0 they are alike."""
    least = 0.01 * max(levels, default=0.0) or 1.0
    return [max(level, least) ** 0.5 for level in levels]


def by_kl(evidence: Sequence[Evidence]) -> list[float]:
    """The root of the divergence from the dense model when that layer alone is halved, as `with_divergence` left it.

    Raises:
        ValueError: it was not measured.
    """
    divergence = [layer.divergence for layer in evidence if layer.divergence is not None]
    if len(divergence) < len(evidence):
        raise ValueError(
            f"evidence: expected the divergence of {len(evidence)} layers, got {len(divergence)}"
        )
    return [value**0.5 for value in divergence]


def with_divergence(
    model: PreTrainedModel, ffns: Sequence[FFN], evidence: Sequence[Evidence], batches: Sequence[Tensor]
) -> list[Evidence]:
    """The same evidence with what `pruning.observe.divergence` finds when that layer alone is halved and repaired.

    Half of the order of conditional information goes, and least squares makes up for it. Costs a forward pass over
    `batches` for each layer; the model is as it was afterwards.

    Raises:
        ValueError: outputs that are not finite when a layer is halved.
    """
    dense = Dense(model, batches)
    measured = []
    for ffn, layer in zip(ffns, evidence, strict=True):
        keep = complement(layer.order[: ffn.width // 2], ffn.width)
        with restored([ffn]):
            prune_separately([ffn], [keep], [layer.statistics], "lstsq")
            divergence = dense.divergence()
        if not math.isfinite(divergence):
            raise ValueError(
                f"{ffn.name}: expected finite outputs of the model with half of these neurons, got NaN or infinite "
                "ones; budget='mi' needs none"
            )
        measured.append(replace(layer, divergence=divergence))
    return measured
