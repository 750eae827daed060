"""The quality of a model: perplexity, hidden states, and a generated sentence."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.isolation import isolated
from pruning.model.device import input_device
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.forward import without_cache
from pruning.observe.batches import Batch, model_inputs, real_positions, select_tokens
from pruning.observe.mixture import longest_sequence
from pruning.observe.text import encode

NEW_TOKENS = 32
"""Of a continuation."""
FEW_TOKENS = 8
"""Enough to see whether a model looks ahead."""


class Perplexity(NamedTuple):
    """The perplexity of a causal language model on windows of text.

    Attributes:
        nll: `[n]` float64, for each window the mean negative log-likelihood of its tokens given those before, nats.
        n_tokens: `[n]`, predicted tokens of each window; None if they are equal.
    """

    nll: Tensor
    n_tokens: Tensor | None = None

    @property
    def value(self) -> float:
        if self.n_tokens is None:
            return float(self.nll.mean().exp())  # infinite on overflow
        return float((self.nll * self.n_tokens).sum().div(self.n_tokens.sum()).exp())


def log_ratio_error(before: Perplexity, after: Perplexity) -> float:
    """Standard error of the logarithm of `after.value / before.value`, over the same windows; NaN for one window.

    A window counts by its tokens, as it does in the perplexity, so this is the error of a ratio of two sums.

    Source: W. G. Cochran, Sampling Techniques, third edition, 1977, chapter 6.
    """
    difference = after.nll - before.nll
    n_windows = len(difference)
    if n_windows < 2:
        return float("nan")
    n_tokens = torch.ones_like(difference) if before.n_tokens is None else before.n_tokens.double()
    residuals = n_tokens * (difference - difference @ n_tokens / n_tokens.sum())
    return float((residuals.square().sum() * n_windows / (n_windows - 1)).sqrt() / n_tokens.sum())


@isolated()
def perplexity(model: PreTrainedModel, batches: Iterable[Batch]) -> Perplexity:
    """Perplexity on batches of windows `[B, L]`; every window starts without context, and padding does not count.

    An encoder-decoder reads the window and predicts it: its loss with the tokens of the window as `labels`.

    Raises:
        ValueError: no windows of at least two tokens, or a model that reads the tokens that it should predict.
    """
    losses: list[Tensor] = []
    lengths: list[int] = []
    with torch.inference_mode(), evaluation_mode(model):
        for batch in batches:
            inputs = model_inputs(batch, input_device(model))
            real = real_positions(inputs)
            if not losses and "decoder_input_ids" not in inputs:
                _check_causal(model, inputs["input_ids"][:1, :FEW_TOKENS])
            logits, targets = model(**inputs, use_cache=False).logits, inputs["input_ids"]
            if "decoder_input_ids" not in inputs:  # which are shifted already
                logits, targets = logits[:, :-1], targets[:, 1:]  # [B, L - 1, vocabulary], [B, L - 1]
                real = None if real is None else real[:, 1:] & real[:, :-1]
            for i, (window, target) in enumerate(zip(logits, targets, strict=True)):
                if real is not None:
                    window, target = window[real[i]], target[real[i]]
                if len(target):
                    losses.append(F.cross_entropy(window.float(), target).cpu())
                    lengths.append(len(target))
    if not losses:
        raise ValueError("windows: expected at least one to evaluate on, got none")
    equal = len(set(lengths)) == 1
    return Perplexity(torch.stack(losses).double(), None if equal else torch.tensor(lengths))


def _check_causal(model: PreTrainedModel, ids: Tensor) -> None:
    """Raise ValueError if the predictions for the tokens `[1, L]` change with the last one, which none of them should
    know: so they do in classes such as BertLMHeadModel whose config does not say `is_decoder`."""
    other = ids.clone()
    other[:, -1] = torch.where(ids[:, -1] == 0, 1, 0)
    before, after = (model(input_ids=t, use_cache=False).logits[:, :-1].float() for t in (ids, other))
    # Half of the digits: experts that get other numbers of tokens round otherwise.
    rounding = torch.finfo(model.dtype).eps ** 0.5
    if before.numel() and bool((before - after).abs().max() > rounding * before.abs().max()):
        raise ValueError(
            f"{type(model).__name__}: expected a model that predicts a token from those before it, got predictions "
            f"that change with later tokens; set is_decoder in its config, or load it without its head (AutoModel)"
        )


@isolated()
def hidden_states(model: PreTrainedModel, batches: Iterable[Batch]) -> Tensor:
    """Last hidden states of an encoder, `[tokens, d]` float32 on the CPU, without padding."""
    body = model.base_model
    states = []
    with torch.inference_mode(), evaluation_mode(model):
        for batch in batches:
            inputs = model_inputs(batch, input_device(model))
            hidden = body(**inputs, **without_cache(body)).last_hidden_state
            states.append(select_tokens(hidden, real_positions(inputs)).float().cpu())
    return torch.cat(states)


@isolated()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = NEW_TOKENS,
) -> str:
    """The model's greedy continuation of `prompt`."""
    inputs = encode(tokenizer, prompt, return_tensors="pt").to(model.device)
    with torch.inference_mode(), evaluation_mode(model):
        ids = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def check_prompt(prompt: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError unless the model can continue the prompt."""
    if not model.can_generate():
        raise ValueError(
            f"--prompt: expected a model that generates text with it, got {type(model).__name__}"
        )
    try:
        n_tokens = len(encode(tokenizer, prompt)["input_ids"])
    except (
        Exception
    ) as error:  # half of a surrogate pair, from an argument that is not in the terminal's encoding
        raise ValueError(f"--prompt: expected text that can be tokenized, got {prompt!a}: {error}") from error
    if n_tokens == 0:
        raise ValueError(f"--prompt: expected a text of at least one token, got {prompt!a}")
    longest = longest_sequence(model)
    if longest is None:
        return
    if model.config.is_encoder_decoder:  # the decoder has positions of its own
        if n_tokens > longest:
            raise ValueError(
                f"--prompt: expected at most the {longest} positions of the model in tokens, got {n_tokens}"
            )
    elif n_tokens + NEW_TOKENS > longest:
        raise ValueError(
            f"--prompt: expected at most {longest - NEW_TOKENS} tokens, which leave {NEW_TOKENS} of the model's "
            f"{longest} positions to continue it, got {n_tokens}"
        )
