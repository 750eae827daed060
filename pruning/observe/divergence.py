"""How far the outputs of a pruned model are from those of the dense one, without labels."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.model.device import input_device
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.forward import comparable_part, is_causal, without_cache
from pruning.observe.batches import Batch, model_inputs, real_positions


class DenseOutputs:
    """The outputs of a dense model for batches of tokens `[B, L]`, to compare later versions of the model with.

    Memory: the logits of all windows, on the CPU.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self._model = model
        self._batches = [model_inputs(batch, "cpu") for batch in batches]
        self._outputs = [self._output(batch).cpu() for batch in self._batches]

    def divergence(self) -> float:
        """Distance of the current model from the dense one.

        For language models the mean KL divergence of the next-token distributions from the dense ones, in nats; for
        all others, such as encoders, classifiers and masked language models, the mean squared change of the last
        hidden states. The mean is over all tokens but padding. Infinite if an output is NaN.
        """
        parts, lengths = [], []
        for dense, batch in zip(self._outputs, self._batches, strict=True):
            pruned, real = self._output(batch), real_positions(batch, decoder="decoder_input_ids" in batch)
            parts.append(_divergence(dense.to(pruned.device), pruned, real, causal=is_causal(self._model)))
            lengths.append(torch.full((len(pruned),), pruned.shape[1]) if real is None else real.sum(1))
        divergence, weights = torch.cat(parts), torch.cat(lengths).double()
        weights = (weights / weights.mean()).to(divergence)  # exactly 1 if all lengths are equal
        mean = float((divergence * weights).mean())
        return math.inf if math.isnan(mean) else max(mean, 0.0)

    def _output(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits `[B, L, vocabulary]` of a language model, otherwise hidden states `[B, L, d]`."""
        part = comparable_part(self._model)
        with torch.no_grad(), evaluation_mode(self._model):
            output: Tensor = part(**model_inputs(batch, input_device(self._model)), **without_cache(part))[0]
        return output


def _divergence(dense: Tensor, pruned: Tensor, real: Tensor | None, *, causal: bool) -> Tensor:
    """The mean divergence of each window, `[B]`, over the positions `real [B, L]`, or over all."""
    if not causal and dense.ndim != 3:  # not of tokens, such as the similarities of texts and images
        return (dense.float() - pruned.float()).square().flatten(1).mean(1)
    if not causal and real is None:
        return (dense.float() - pruned.float()).square().mean((1, 2))
    parts = []  # one window at a time, since float32 logits of all windows are large
    for i, (p, q) in enumerate(zip(dense, pruned, strict=True)):
        if real is not None:
            p, q = (values[real[i].to(values.device)] for values in (p, q))
        if causal:
            p, q = (values.float().log_softmax(-1) for values in (p, q))
            parts.append(F.kl_div(q, p, reduction="batchmean", log_target=True))
        else:
            parts.append((p.float() - q.float()).square().mean())
    return torch.stack(parts)
