"""Text that a causal model writes itself: calibration that covers everything the model knows, in its own proportions.

Nothing but the model is needed, and no kind of text is favored.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.evaluation_mode import evaluation_mode
from pruning.observe.text import beginning
from pruning.progress import track

SELF = "self"
BATCH = 64
"""Samples that are written at a time; on two CPU cores 32 take almost as long."""
REPEATED = 0.5
"""A sample is a loop if more than this share of its runs of `RUN` tokens has occurred in it before."""
RUN = 4


@dataclass(frozen=True)
class Samples:
    """The source of text `self`."""

    name: str = SELF


def sample_sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    n_tokens: int,
    bos: bool,
    seed: int,
    progress: bool = False,
) -> list[Tensor]:
    """Samples `[length]` int64 of the model's own distribution, about `n_tokens` in all, without loops.

    Each starts behind a BOS token, or an EOS token for a tokenizer without one, and goes on behind an end of text. The
    first token belongs to the sample only if the tokenizer puts it in front of a text by itself: the model must be
    calibrated as it is used. Temperature and top-p are 1. Sharper samples are too predictable: they show the model
    only what it is sure of.

    Equal arguments give equal samples on one machine.

    Args:
        model: that predicts the next token.
        tokenizer: with a BOS or EOS token.
        length, n_tokens: of each sample, and in all.
        bos: see `pruning.observe.text.token_windows`.
        seed: of the draws.
        progress: show a progress bar.
    """
    start = start_of_text(tokenizer)
    hidden = 0 if bos and beginning(tokenizer) else len(start)
    count = max(1, n_tokens // length)
    steps = range(0, count, BATCH)
    samples: list[Tensor] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), evaluation_mode(model):
        torch.manual_seed(seed)
        for first in track(steps, "sample", show=progress):
            prompt = torch.tensor([start] * min(BATCH, count - first), device=model.device)
            samples += _continue(model, prompt, length + hidden).cpu()[:, hidden:]
    kept = [sample for sample in samples if not is_loop(sample)]
    if len(kept) < len(samples):
        warnings.warn(
            f"calibration: {len(samples) - len(kept)} of the model's {len(samples)} own samples only repeat "
            f"themselves; text that ships with Python is used in their place",
            stacklevel=2,
        )
    return kept


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens behind which a model writes a new text; none if the tokenizer has neither BOS nor EOS token."""
    ids = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    return beginning(tokenizer) or ids[:1]


def is_loop(sample: Tensor) -> bool:
    """Whether a sample `[L]` mostly repeats itself, such as one of padding alone."""
    runs = sample.unfold(0, RUN, 1) if len(sample) > RUN else sample[None]
    return len(torch.unique(runs, dim=0)) < math.ceil((1 - REPEATED) * len(runs))


def _continue(model: PreTrainedModel, prompt: Tensor, length: int) -> Tensor:
    """The prompts `[B, P]` continued to `[B, length]`."""
    static = getattr(model, "_can_compile_fullgraph", False)  # the cache then need not grow at every step
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=length,
        pad_token_id=int(prompt[0, 0]),  # never used: without an EOS token no sample ends early
        remove_invalid_values=True,  # NaN would end a process on a GPU; capturing refuses it by name
        cache_implementation="static" if static else None,
        disable_compile=True,
    )
    own, model.generation_config = model.generation_config, config  # `generate` would mix both
    try:
        return model.generate(prompt, attention_mask=torch.ones_like(prompt))
    finally:
        model.generation_config = own
