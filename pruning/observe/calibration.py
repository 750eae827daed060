"""What `pruning.prune` accepts as calibration, and the windows of tokens that it gives."""

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.ffn import text_config
from pruning.model.forward import BY_NAME, is_causal
from pruning.observe.batches import TEXT_INPUTS, Batch, Inputs, Windows, unpadded
from pruning.observe.samples import Samples, sample_sequences, start_of_text
from pruning.observe.sequences import CHARACTERS_PER_TOKEN, token_sequences
from pruning.observe.sources import MESSAGES_COLUMNS, TEXT_COLUMNS, Records, Source, builtin, open_source
from pruning.settings import Settings

Calibration = Any
"""Everything that `pruning.prune` lists."""
Weighted = Sequence[tuple[Source | Samples, float]]
COMPARISON_TOKENS = 2048
"""Enough tokens to tell layers and selections apart."""
EXPECTED = (
    "calibration: expected text, a Path, windows of token ids [n, L], a dict with input_ids, or a list of these, "
    "got "
)


def calibration_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Calibration,
    settings: Settings,
    *,
    stand_in: bool = False,
    progress: bool = False,
) -> Windows | Inputs:
    """Windows of token ids, or batches of other inputs, from everything that `pruning.prune` accepts.

    Args:
        stand_in, progress: see `text_windows`.

    Raises:
        ValueError: something else, too little text, ids that the model does not have, or windows longer than it
            accepts.
    """
    if isinstance(calibration, (Windows, Inputs)):
        return calibration
    weighted = _sources(calibration, settings)
    if weighted is not None:
        _expect_text(model)
        if tokenizer is None:
            raise ValueError("tokenizer: expected one for calibration text, got None")
        return text_windows(
            model,
            tokenizer,
            weighted,
            settings,
            n_tokens=settings.calibration_tokens,
            stand_in=stand_in,
            progress=progress,
        )
    if isinstance(calibration, Iterator):
        calibration = list(calibration)  # which can be read more than once
    padding = getattr(text_config(model), "pad_token_id", None) or 0
    if (batches := _model_batches(calibration, model)) is not None:
        return Inputs(batches, f"{len(batches)} batches with {', '.join(batches[0])}")
    sequences = list(_token_ids(calibration, model))
    if not sequences:
        raise ValueError(f"{EXPECTED}nothing")
    _expect_text(model)
    source = f"{len(sequences)} sequences of token ids"
    windows = Windows(sequences, source, padding, _decoder_start(model))
    _check(model, windows)
    return windows


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
    sequences: list[Tensor] = []
    for source, weight in weighted:
        share = int(n_tokens * weight / total)
        if isinstance(source, Samples):
            _check_can_write(model, tokenizer, settings)
            samples = [] if stand_in else _own_samples(model, tokenizer, settings, share, progress=progress)
            sequences += samples
            share -= sum(map(len, samples))
            if samples and share < settings.sequence_length:
                continue
            source = builtin()  # also in place of samples that were dropped
        sequences += token_sequences(
            source,
            tokenizer,
            length=settings.sequence_length,
            n_tokens=share,
            special_tokens=not is_causal(model),
            bos=settings.bos,
        )
    shares = [1.0 for _ in weighted] == [weight for _, weight in weighted]
    name = ", ".join(source.name if shares else f"{source.name}={weight:g}" for source, weight in weighted)
    windows = Windows(sequences, name, tokenizer.pad_token_id or 0, _decoder_start(model))
    _check(model, windows)
    return windows


def has_samples(calibration: Calibration) -> bool:
    """Whether the calibration is sources with the model's own samples among them."""
    return _is_weighted(calibration) and any(isinstance(source, Samples) for source, _ in calibration)


def _own_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    n_tokens: int,
    *,
    progress: bool,
) -> list[Tensor]:
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
        raise ValueError(
            f"calibration: expected {type(model).__name__} to write text for 'self', got {type(error).__name__}: "
            f"{error}; name a text to calibrate on"
        ) from error


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


def comparison_batches(windows: Windows | Inputs | Tensor, batch_size: int) -> Sequence[Batch]:
    """About 2,048 tokens of the windows, spread evenly over them, in batches."""
    if isinstance(windows, Tensor):
        windows = Windows(list(windows))
    return windows.evenly(math.ceil(COMPARISON_TOKENS * len(windows) / windows.n_tokens)).split(batch_size)


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


def _check_length(model: PreTrainedModel, length: int) -> None:
    longest = longest_sequence(model)
    if longest is not None and length > longest:
        raise ValueError(
            f"sequence_length: expected at most the {longest} positions of the model, got {length}"
        )


def _check(model: PreTrainedModel, windows: Windows) -> None:
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


def _sources(calibration: Calibration, settings: Settings) -> Weighted | None:
    """The sources of text that the calibration stands for; None if it holds token ids."""
    if calibration is None:
        return [(builtin(), 1.0)]
    if isinstance(calibration, Path):
        return [(open_source(calibration), 1.0)]
    if isinstance(calibration, str):
        if len(calibration) < 256 and Path(calibration).is_file():
            raise ValueError(
                f"calibration: expected text, got the name of a file; pass Path({calibration!r}) to read it"
            )
        return [(Records("text", [calibration], separator="\n\n"), 1.0)]
    columns = getattr(calibration, "column_names", None)
    if isinstance(columns, list) and "input_ids" not in columns and hasattr(calibration, "__len__"):
        return [(Records("data set", calibration, separator="\n\n"), 1.0)]
    if isinstance(calibration, (list, tuple)) and calibration:
        first = calibration[0]
        if _is_weighted(calibration):
            return calibration
        if all(isinstance(item, Path) for item in calibration):
            return [(open_source(path), 1.0) for path in calibration]
        if isinstance(first, str) or _is_record(first):
            return [(Records(f"{len(calibration)} texts", calibration), 1.0)]
    elif isinstance(columns, list) and "input_ids" not in columns:  # a data set that is read as a stream
        limit, rows, size = settings.calibration_tokens * CHARACTERS_PER_TOKEN, [], 0
        for row in calibration:
            rows.append(row)
            size += len(str(row))
            if size >= limit:
                break
        return [(Records("data set", rows, separator="\n\n"), 1.0)]
    return None


def _model_batches(calibration: Any, model: PreTrainedModel) -> list[dict[str, Tensor]] | None:
    """The batches of a calibration with other inputs than text, such as `pixel_values`; None for token ids."""
    if isinstance(calibration, Mapping):
        calibration = [calibration]
    if not isinstance(calibration, Iterable) or isinstance(calibration, (Tensor, np.ndarray, str, bytes)):
        return None
    names = inspect.signature(model.forward).parameters.keys() - {"labels", "return_dict"}
    items = list(calibration)
    if not items or not all(
        isinstance(item, Mapping) and item.keys() & (names - TEXT_INPUTS) for item in items
    ):
        return None
    batches = []
    for item in items:
        batch = {n: _tensor(n, v) for n, v in item.items() if n in names and v is not None}
        batches.append({n: v.to(model.dtype) if v.is_floating_point() else v for n, v in batch.items()})
    return batches


def _tensor(name: str, value: Any) -> Tensor:
    """An argument of the model."""
    if not isinstance(value, (Tensor, np.ndarray)):
        raise ValueError(f"calibration: expected a tensor or array for {name}, got {type(value).__name__}")
    return torch.as_tensor(value)


def _expect_text(model: PreTrainedModel) -> None:
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"calibration: expected batches of inputs by name, such as {model.main_input_name}, for "
            f"{type(model).__name__}, which does not read text alone, got text or token ids; {BY_NAME}"
        )


def _decoder_start(model: PreTrainedModel) -> int | None:
    """The token with which the decoder of an encoder-decoder begins; None for other models."""
    if not model.config.is_encoder_decoder:
        return None
    config = text_config(model)
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        if (token := getattr(model.config, name, None) or getattr(config, name, None)) is not None:
            return int(token)
    return 0


def _is_weighted(calibration: Any) -> bool:
    """Whether the calibration is sources with their weights."""
    return isinstance(calibration, (list, tuple)) and all(
        isinstance(item, tuple) and (isinstance(item[0], Samples) or hasattr(item[0], "documents"))
        for item in calibration
    )


def _is_record(item: Any) -> bool:
    return isinstance(item, Mapping) and any(name in item for name in (*TEXT_COLUMNS, *MESSAGES_COLUMNS))


def _token_ids(calibration: Any, model: PreTrainedModel) -> Iterable[Tensor]:
    """The sequences of token ids in a batch, or in an iterable of batches."""
    if isinstance(calibration, (Tensor, np.ndarray, Mapping)):
        yield from _batch_sequences(calibration, model, one_row=False)
    elif isinstance(calibration, Iterable) and not isinstance(calibration, bytes):
        for item in calibration:
            if isinstance(item, (list, tuple)) and len(item) == 1 and isinstance(item[0], Tensor):
                item = item[0]  # of a TensorDataset
            yield from _batch_sequences(item, model, one_row=True)
    else:
        raise ValueError(f"{EXPECTED}{type(calibration).__name__}")


def _batch_sequences(item: Any, model: PreTrainedModel, *, one_row: bool) -> Iterable[Tensor]:
    mask = None
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            raise ValueError(f"{EXPECTED}a dict with {', '.join(map(str, islice(item, 8))) or 'nothing'}")
        ids = _integers(item["input_ids"], one_row=True)
        if item.get("attention_mask") is not None:
            mask = _integers(item["attention_mask"], one_row=True, expected="an attention_mask of integers")
            if mask.shape != ids.shape or bool(((mask != 0) & (mask != 1)).any()):
                raise ValueError(
                    f"calibration: expected an attention_mask of 0 and 1 of shape {list(ids.shape)}, got "
                    f"{list(mask.shape)} from {int(mask.min())} to {int(mask.max())}"
                )
    else:
        ids = _integers(item, one_row=one_row)
    if mask is None:
        _warn_of_padding(ids, model)
    yield from unpadded(ids, mask)


def _integers(values: Any, *, one_row: bool, expected: str = "windows of token ids") -> Tensor:
    """`[n, L]` int64 on the CPU or where the tensor is."""
    try:
        ids = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{EXPECTED}{type(values).__name__}: {error}") from error
    if one_row and ids.ndim == 1:
        ids = ids[None]
    integer = not (ids.is_floating_point() or ids.is_complex())
    if ids.ndim != 2 or not integer or ids.numel() == 0:
        raise ValueError(f"calibration: expected {expected} [n, L], got {ids.dtype} {list(ids.shape)}")
    return ids.long()


def _warn_of_padding(ids: Tensor, model: PreTrainedModel) -> None:
    config = text_config(model)
    padding = getattr(config, "pad_token_id", None)
    if padding is None or padding in (getattr(config, f"{kind}_token_id", None) for kind in ("bos", "eos")):
        return
    if bool((ids[:, -1] == padding).any() or (ids[:, 0] == padding).any()):
        warnings.warn(
            f"calibration: windows begin or end with the padding token {padding}, which counts as text; pass a dict "
            "with input_ids and attention_mask",
            stacklevel=2,
        )
