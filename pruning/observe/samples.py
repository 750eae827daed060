"""Text that a causal model writes itself: calibration that covers what the model knows.

Nothing but the model is needed. It writes short passages, several of which are a window: many short ones are of more
kinds than a few long ones, and take less time. Every second passage begins in the model's own way; that alone would be
mostly what the model writes unasked, such as conversations. The others begin with the openers of many kinds of prose.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning.model.device import input_device
from pruning.model.evaluation_mode import evaluation_mode
from pruning.observe.text import beginning, encode
from pruning.progress import track

SELF = "self"
PASSAGE = 128
"""Tokens of a passage, at most."""
BATCH = 256
"""Passages that are written at a time."""
REPEATED = 0.5
"""A passage is a loop if more than this share of its runs of `RUN` tokens has occurred in it before."""
RUN = 4
ATTEMPTS = 4
"""How often a passage is written, until it is no loop. Qwen2.5-Coder-0.5B loops in a third of them."""
OPENERS = (
    "The president said on Tuesday that",
    "The city of",
    "Abstract. In this paper, we",
    "Police said",
    "He was born in",
    "The court held that",
    "According to a report published on Monday,",
    "The film was directed by",
    "Patients with",
    "Once upon a time,",
    "Shares of the company",
    "The species is found in",
    "The team won",
    "The war began",
    "She is an American",
    "In economics,",
    '"I don\'t know," she said.',
    "The history of",
    "WASHINGTON (AP) —",
    "How to",
    "Dear Sir or Madam,",
    "I bought this",
)
"""Beginnings of prose: news, encyclopedias, science, law, fiction, advice, letters and reviews, in an order in which
the first few differ. Code and technical text are the other half of the default calibration. None ends with a space,
behind which tokenizers would not go on as in a text."""


@dataclass(frozen=True)
class Samples:
    """The source of text `self`.

    Attributes:
        is_default: nobody asked for it; other text takes its place, with a warning, if the model cannot write.
    """

    name: str = SELF
    is_default: bool = False


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
    """Windows `[length]` int64 of what the model writes, about `n_tokens` in all, without loops.

    Each passage is written behind a BOS token, or an EOS token for a tokenizer without one, and goes on behind an end
    of text. In front of a window, and only there, is the token that the tokenizer puts in front of a text by itself,
    if any: the model must be calibrated as it is used. Every second passage goes on from one of the `OPENERS`, in turn.
    One that only repeats itself is written again a few times, as long as that helps any.
    Temperature and top-p are 1. Sharper samples are too predictable: they show the model only what it is sure of.

    Equal arguments give equal windows on one machine.

    Args:
        model: that predicts the next token.
        tokenizer: with a BOS or EOS token.
        length, n_tokens: of each window, and in all.
        bos: see `pruning.observe.text.token_windows`.
        seed: of the draws.
        progress: show a progress bar.
    """
    front = tensor(beginning(tokenizer) if bos else [], dtype=torch.int64)
    start = start_of_text(tokenizer)
    room = max(1, length - len(front))
    in_window = math.ceil(room / PASSAGE)
    size = math.ceil(room / in_window)
    count = max(1, n_tokens // length) * in_window
    openers = [encode(tokenizer, text, add_special_tokens=False).input_ids[: size // 2] for text in OPENERS]
    opened = [openers[i // 2 % len(openers)] if i % 2 else [] for i in range(count)]
    passages: dict[int, Tensor] = {}
    device = input_device(model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), evaluation_mode(model):
        torch.manual_seed(seed)
        for _ in range(ATTEMPTS):
            before = len(passages)
            missing = [i for i in range(count) if i not in passages]
            for first in track(range(0, len(missing), BATCH), "sample", show=progress):
                part = missing[first : first + BATCH]
                prompt = tensor([start] * len(part), device=device)
                written = _continue(model, prompt, [opened[i] for i in part], len(start) + size).cpu()
                for i, passage in zip(part, written[:, len(start) :], strict=True):
                    if not is_loop(passage[len(opened[i]) :]):
                        passages[i] = passage
            if len(passages) in (before, count):
                break
    if len(passages) < count:
        warnings.warn(
            f"calibration: {count - len(passages)} of the {count} passages that the model wrote only repeat "
            f"themselves; text that ships with Python is used in their place",
            stacklevel=2,
        )
    kept = [passages[i] for i in sorted(passages)]
    complete = range(0, len(kept) - in_window + 1, in_window)
    return [torch.cat([front, *kept[i : i + in_window]])[:length] for i in complete]


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens behind which a model writes a new text; none if the tokenizer has neither BOS nor EOS token."""
    ids = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    return beginning(tokenizer) or ids[:1]


def is_loop(passage: Tensor) -> bool:
    """Whether a passage `[L]` mostly repeats itself, such as one of padding alone."""
    runs = passage.unfold(0, RUN, 1) if len(passage) > RUN else passage[None]
    return len(torch.unique(runs, dim=0)) < math.ceil((1 - REPEATED) * len(runs))


class _Forced(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Makes the tokens of each sequence behind the prompt those of its opener, as far as that goes."""

    def __init__(self, prompt_length: int, openers: Sequence[Sequence[int]]) -> None:
        self._prompt_length, self._openers = prompt_length, openers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._prompt_length
        for row, opener in enumerate(self._openers):
            if step < len(opener):
                scores[row] = -torch.inf
                scores[row, opener[step]] = 0.0
        return scores


def _continue(
    model: PreTrainedModel, prompt: Tensor, openers: Sequence[Sequence[int]], length: int
) -> Tensor:
    """The prompts `[B, P]`, each with its opener, continued to `[B, length]`."""
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
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            logits_processor=LogitsProcessorList([_Forced(prompt.shape[1], openers)]),
        )
    finally:
        model.generation_config = own
