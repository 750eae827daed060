"""How much the model as a whole minds when one layer is halved: weights of the layers in a budget."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mikernels.null import null_threshold
from mikernels.problem import Estimator
from pruning.capture import evaluation_mode
from pruning.evidence import Evidence
from pruning.families import FFN
from pruning.repair import complement, repair_projection
from pruning.surgery import prune_ffn, recall, remember


def by_mi(evidence: Sequence[Evidence], *, estimator: Estimator, nodes: int) -> list[float]:
    """The root of each layer's median mutual information over that of independent neurons. Costs nothing more.

    Layers whose neurons share much are layers that the model minds losing: on SmolLM2-135M such a budget lies between
    the uniform one and that by `by_kl` in perplexity at 50 % (`benchmarks/results/quality.md`).
    """
    levels = []
    for layer in evidence:
        floor = null_threshold("null:0.5", len(layer.statistics.sample), estimator=estimator, nodes=nodes)
        levels.append(max(layer.median_mi - floor, 0.0))
    least = 0.01 * max(levels, default=0.0) or 1.0  # no layer is free, and if all are alike they are alike
    return [max(level, least) ** 0.5 for level in levels]


def by_kl(
    model: PreTrainedModel, ffns: Sequence[FFN], evidence: Sequence[Evidence], batches: Sequence[Tensor]
) -> list[float]:
    """The root of the divergence from the dense model when that layer alone is halved and repaired by least squares.

    It is the mean KL divergence of next-token distributions, nats; of a model without a language-model head the mean
    squared change of the last hidden states. Costs a forward pass over `batches` for each layer; the model is as it
    was afterwards.
    """
    with torch.no_grad(), evaluation_mode(model):
        dense = [_output(model, batch).cpu() for batch in batches]
        divergence = []
        for ffn, layer in zip(ffns, evidence, strict=True):
            keep = complement(layer.order[: ffn.width // 2], ffn.width)
            before = remember([ffn])
            try:
                projection = repair_projection(
                    ffn.output.weight,
                    ffn.output.bias,
                    keep,
                    layer.statistics,
                    "lstsq",
                    intercept=ffn.output.bias is not None,
                )
                prune_ffn(ffn, keep, projection)
                parts = [
                    _divergence(
                        reference.to(model.device), _output(model, batch), causal=model.can_generate()
                    )
                    for reference, batch in zip(dense, batches, strict=True)
                ]
            finally:
                recall(before)
            divergence.append(max(float(torch.stack(parts).mean()), 0.0))
    return [value**0.5 for value in divergence]


def _output(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Logits `[B, L, vocabulary]` of a language model, else hidden states `[B, L, d]`."""
    output: Tensor = model(input_ids=batch.to(model.device))[0]
    return output


def _divergence(dense: Tensor, pruned: Tensor, *, causal: bool) -> Tensor:
    if not causal:
        return (dense.float() - pruned.float()).square().mean()
    parts = [  # window by window: in float32 the logits of all are large
        F.kl_div(q.float().log_softmax(-1), p.float().log_softmax(-1), reduction="batchmean", log_target=True)
        for p, q in zip(dense, pruned, strict=True)
    ]
    return torch.stack(parts).mean()
