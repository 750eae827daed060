"""How far a pruned model is from the dense one, without labels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.observe.capture import evaluation_mode

TOKENS = 2048
"""That are enough to tell layers and selections apart."""


def few(windows: Tensor, batch_size: int) -> Sequence[Tensor]:
    """`TOKENS` of the windows `[n, L]` or a little more, spread evenly, in batches."""
    count = min(len(windows), -(-TOKENS // windows.shape[1]))
    return windows[[i * len(windows) // count for i in range(count)]].split(batch_size)


class Dense:
    """What a model says about some windows of tokens `[B, L]` while it is dense.

    Memory: the logits of all windows, on the CPU.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> None:
        self._model = model
        self._batches = batches
        self._outputs = [self._output(batch).cpu() for batch in batches]

    def divergence(self) -> float:
        """Of the model as it is now: the mean KL divergence of its next-token distributions from the dense ones, nats.

        Of a model without a language-model head the mean squared change of the last hidden states. Infinite where
        something in it is not a number.
        """
        parts = [
            _divergence(dense.to(self._model.device), self._output(batch), causal=self._model.can_generate())
            for dense, batch in zip(self._outputs, self._batches, strict=True)
        ]
        mean = float(torch.cat(parts).mean())
        return math.inf if math.isnan(mean) else max(mean, 0.0)

    def _output(self, batch: Tensor) -> Tensor:
        """Logits `[B, L, vocabulary]` of a language model, else hidden states `[B, L, d]`."""
        with torch.no_grad(), evaluation_mode(self._model):
            options = {"use_cache": False} if self._model.can_generate() else {}
            output: Tensor = self._model(input_ids=batch.to(self._model.device), **options)[0]
        return output


def _divergence(dense: Tensor, pruned: Tensor, *, causal: bool) -> Tensor:
    """Of each window, `[B]`."""
    if not causal:
        return (dense.float() - pruned.float()).square().mean((1, 2))
    parts = [  # window by window: in float32 the logits of all are large
        F.kl_div(q.float().log_softmax(-1), p.float().log_softmax(-1), reduction="batchmean", log_target=True)
        for p, q in zip(dense, pruned, strict=True)
    ]
    return torch.stack(parts)
