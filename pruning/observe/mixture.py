"""Sources of text, each with its share of the tokens, to the windows that a model reads."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.ffn import text_config
from pruning.model.forward import is_causal
from pruning.observe.batches import Windows, with_decoder
from pruning.observe.samples import Samples, sample_sequences, start_of_text
from pruning.observe.sequences import token_sequences
from pruning.observe.sources import BUILTIN, Source, builtin
from pruning.settings import Settings

Weighted = Sequence[tuple[Source | Samples, float]]
"""Sources, each with its weight."""
MOST_LACKING = 0.1
"""Of the share of a source: with less it is only rounded."""


def default_sources(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Weighted:
    """Text that ships with Python and, in equal parts, what the model writes itself, if it can."""
    can_write = is_causal(model) and tokenizer is not None and start_of_text(tokenizer)
    return [(builtin(), 1.0), *([(Samples(is_default=True), 1.0)] if can_write else [])]


def text_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weighted: Weighted,
    settings: Settings,
    *,
    n_tokens: int,
    stand_in: bool = False,
    progress: bool = False,
) -> Windows:
    """About `n_tokens` of the sources, each in proportion to its weight.

    Args:
        stand_in: read the text that ships with Python in place of the model's own samples, which take minutes; enough
            to check everything else.
        progress: show a progress bar while the model writes samples.

    Raises:
        ValueError: too little text, windows longer than the model accepts, or samples of a model that cannot write
            any.
    """
    total = sum(weight for _, weight in weighted)
    equal = all(weight == 1 for _, weight in weighted)
    names: list[str] = []
    texts: list[tuple[Source, int]] = []
    parts: list[list[Tensor]] = []
    missing = 0  # tokens of samples that there are not
    for source, weight in weighted:
        share = int(n_tokens * weight / total)
        if isinstance(source, Samples):
            _check_can_write(model, tokenizer, settings)
            samples = (
                [] if stand_in else _own_samples(model, tokenizer, settings, share, source, progress=progress)
            )
            missing += max(0, share - sum(map(len, samples)))
            if not samples and not stand_in:
                continue
            parts.append(samples)
        else:
            texts.append((source, share))
        names.append(source.name if equal else f"{source.name}={weight:g}")
    if missing >= settings.sequence_length or not (texts or any(parts)):
        # Together with what is read of it anyway, so that no window is read twice.
        own = [share for source, share in texts if source.name == BUILTIN]
        texts = [(source, share) for source, share in texts if source.name != BUILTIN]
        texts.append((builtin(), missing + sum(own)))
        names += [BUILTIN] if not (own or stand_in) else []
    for text, share in texts:
        read = token_sequences(
            text,
            tokenizer,
            length=settings.sequence_length,
            n_tokens=share,
            special_tokens=not is_causal(model),
            bos=settings.bos,
        )
        parts.append(read)
        lacking = share - sum(map(len, read))
        is_short = lacking >= settings.sequence_length and lacking > MOST_LACKING * share
        stands_in = stand_in and has_samples(weighted)  # it is then read for the model's own samples as well
        if is_short and len(weighted) > 1 and not stands_in:
            warnings.warn(
                f"calibration: expected {share:,} tokens of {text.name}, its share, got the {share - lacking:,} that "
                f"it has; the others weigh more than they should: give more text, other weights or fewer tokens",
                stacklevel=2,
            )
    name = ", ".join(names)
    windows = Windows(_mixed(parts), name, tokenizer.pad_token_id or 0, decoder_start(model))
    check_windows(model, windows)
    return windows


def has_samples(calibration: Any) -> bool:
    """Whether the calibration is sources with the model's own samples among them."""
    return is_weighted(calibration) and any(isinstance(source, Samples) for source, _ in calibration)


def is_weighted(calibration: Any) -> bool:
    """Whether the calibration is sources with their weights."""
    return isinstance(calibration, (list, tuple)) and all(
        isinstance(item, tuple) and (isinstance(item[0], Samples) or hasattr(item[0], "documents"))
        for item in calibration
    )


def check_windows(model: PreTrainedModel, windows: Windows) -> None:
    _check_length(model, windows.longest)
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # a pair of models, such as CLIP
        return
    if not isinstance(embeddings, nn.Embedding):  # such as one table for each codebook of audio
        return
    vocabulary = embeddings.num_embeddings
    low = min(int(sequence.min()) for sequence in windows.sequences)
    high = max(int(sequence.max()) for sequence in windows.sequences)
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"calibration: expected token ids from 0 to {vocabulary - 1}, got {low if low < 0 else high}"
        )


def longest_sequence(model: PreTrainedModel) -> int | None:
    """The number of positions of the model; None if its config does not say.

    RoBERTa counts positions from behind its padding index: its table has that many more rows than a text may have
    tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    longest = getattr(text_config(model), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def decoder_start(model: PreTrainedModel) -> int | None:
    """The token with which the decoder of an encoder-decoder begins; None for other models."""
    if not model.config.is_encoder_decoder:
        return None
    config = text_config(model)
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        if (token := getattr(model.config, name, None) or getattr(config, name, None)) is not None:
            return int(token)
    return 0


def text_inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """The arguments of the model for windows of tokens `[B, L]` without padding."""
    start = decoder_start(model)
    return {"input_ids": ids} if start is None else with_decoder(ids, start)


def _own_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    n_tokens: int,
    source: Samples,
    *,
    progress: bool,
) -> list[Tensor]:
    """Samples for the source; none if it is the default and the model cannot write them."""
    try:
        return sample_sequences(
            model,
            tokenizer,
            length=settings.sequence_length,
            n_tokens=n_tokens,
            bos=settings.bos,
            seed=settings.seed,
            progress=progress,
        )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        reason = (
            f"expected {type(model).__name__} to write text for 'self', got {type(error).__name__}: {error}"
        )
        if not source.is_default:
            raise ValueError(f"calibration: {reason}; name a text to calibrate on") from error
        warnings.warn(
            f"calibration: {reason}; the text that ships with Python is read in its place: name a text that is more "
            f"like what the model is for",
            stacklevel=2,
        )
        return []


def _check_can_write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
    """Everything about the model's own samples that can be known before they are written.

    Raises:
        ValueError: a model or a tokenizer that cannot start a text, or windows longer than the model accepts.
    """
    if not is_causal(model):
        raise ValueError(
            f"calibration: expected a model that predicts the next token for 'self', got {type(model).__name__}; "
            f"name a text to calibrate on"
        )
    if not start_of_text(tokenizer):
        raise ValueError("calibration: expected a tokenizer with a BOS or EOS token for 'self', got neither")
    _check_length(model, settings.sequence_length)


def _check_length(model: PreTrainedModel, length: int) -> None:
    longest = longest_sequence(model)
    if longest is not None and length > longest:
        raise ValueError(
            f"sequence_length: expected at most the {longest} positions of the model, got {length}"
        )


def _mixed(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """All sequences, those of each part spread evenly over the whole: any stretch of it is a mixture."""
    placed = [((i + 0.5) / len(part), sequence) for part in parts for i, sequence in enumerate(part)]
    return [sequence for _, sequence in sorted(placed, key=lambda item: item[0])]
