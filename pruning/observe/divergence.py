"""How far the outputs of a pruned model are from those of the dense one, without labels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.forward import comparable_part, without_cache


class DenseOutputs:
    """The outputs of a dense model for windows of tokens `[B, L]`, to compare later versions of the model with.

    Memory: the logits of all windows, on the CPU.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> None:
        self._model = model
        self._batches = batches
        self._outputs = [self._output(batch).cpu() for batch in batches]

    def divergence(self) -> float:
        """Distance of the current model from the dense one.

        For language models the mean KL divergence of the next-token distributions from the dense ones, in nats; for
        all others, such as encoders, classifiers and masked language models, the mean squared change of the last
        hidden states. Infinite if an output is NaN.
        """
        parts = [
            _divergence(dense.to(self._model.device), self._output(batch), causal=self._model.can_generate())
            for dense, batch in zip(self._outputs, self._batches, strict=True)
        ]
        mean = float(torch.cat(parts).mean())
        return math.inf if math.isnan(mean) else max(mean, 0.0)

    def _output(self, batch: Tensor) -> Tensor:
        """Logits `[B, L, vocabulary]` of a language model, otherwise hidden states `[B, L, d]`."""
        part = comparable_part(self._model)
        with torch.no_grad(), evaluation_mode(self._model):
            output: Tensor = part(input_ids=batch.to(self._model.device), **without_cache(part))[0]
        return output


def _divergence(dense: Tensor, pruned: Tensor, *, causal: bool) -> Tensor:
    """The divergence of each window, `[B]`."""
    if not causal:
        return (dense.float() - pruned.float()).square().mean((1, 2))
    parts = [  # one window at a time, since float32 logits of all windows are large
        F.kl_div(q.float().log_softmax(-1), p.float().log_softmax(-1), reduction="batchmean", log_target=True)
        for p, q in zip(dense, pruned, strict=True)
    ]
    return torch.stack(parts)
