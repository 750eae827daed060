"""The quality of a model: perplexity, hidden states, and a generated sentence."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.isolation import isolated
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.forward import without_cache


class Perplexity(NamedTuple):
    """The perplexity of a causal language model on windows of text.

    Attributes:
        nll: `[n]` float64, for each window the mean negative log-likelihood of its tokens given those before, nats.
    """

    nll: Tensor

    @property
    def value(self) -> float:
        return float(self.nll.mean().exp())  # infinite on overflow


@isolated()
def perplexity(model: PreTrainedModel, batches: Iterable[Tensor]) -> Perplexity:
    """Perplexity on batches of windows `[B, L]`; every window starts without context.

    Raises:
        ValueError: no windows.
    """
    losses: list[Tensor] = []
    with torch.inference_mode(), evaluation_mode(model):
        for batch in batches:
            ids = batch.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # [B, L - 1, vocabulary]
            losses += [
                F.cross_entropy(window.float(), target).cpu()
                for window, target in zip(logits, ids[:, 1:], strict=True)
            ]
    if not losses:
        raise ValueError("windows: expected at least one to evaluate on, got none")
    return Perplexity(torch.stack(losses).double())


@isolated()
def hidden_states(model: PreTrainedModel, batches: Iterable[Tensor]) -> Tensor:
    """Last hidden states of an encoder, `[tokens, d]` float32 on the CPU."""
    with torch.inference_mode(), evaluation_mode(model):
        body = model.base_model
        options = without_cache(body)
        states = [body(input_ids=b.to(model.device), **options).last_hidden_state for b in batches]
    return torch.cat([s.flatten(0, 1).float().cpu() for s in states])


@isolated()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, max_new_tokens: int = 32
) -> str:
    """The model's greedy continuation of `prompt`."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.inference_mode(), evaluation_mode(model):
        ids = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
