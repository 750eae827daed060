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
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.ffn import text_config
from pruning.model.forward import BY_NAME
from pruning.observe.batches import TEXT_INPUTS, Batch, Inputs, Windows, unpadded, with_decoder
from pruning.observe.mixture import (
    Weighted,
    check_windows,
    decoder_start,
    default_sources,
    is_weighted,
    text_windows,
)
from pruning.observe.sequences import CHARACTERS_PER_TOKEN
from pruning.observe.sources import (
    MESSAGES_COLUMNS,
    TEXT_COLUMNS,
    Records,
    open_source,
)
from pruning.settings import Settings

Calibration = Any
"""Everything that `pruning.prune` lists."""
IGNORED_LABEL = -100
"""Where a label is padding, in all of transformers."""
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
    weighted = _sources(default_sources(model, tokenizer) if calibration is None else calibration, settings)
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
    if (batches := _model_batches(calibration, model)) is not None:
        return Inputs(batches, f"{len(batches)} batches with {', '.join(batches[0])}")
    sequences = list(_token_ids(calibration, model))
    if not sequences:
        raise ValueError(f"{EXPECTED}nothing")
    _expect_text(model)
    source = f"{len(sequences)} sequences of token ids"
    windows = Windows(sequences, source, _padding_token(model), decoder_start(model))
    check_windows(model, windows)
    return windows


def comparison_batches(windows: Windows | Inputs | Tensor, batch_size: int) -> Sequence[Batch]:
    """About 2,048 tokens of the windows, spread evenly over them, in batches."""
    if isinstance(windows, Tensor):
        windows = Windows(list(windows))
    return windows.evenly(math.ceil(COMPARISON_TOKENS * len(windows) / windows.n_tokens)).split(batch_size)


def _sources(calibration: Calibration, settings: Settings) -> Weighted | None:
    """The sources of text that the calibration stands for; None if it holds token ids."""
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
        if is_weighted(calibration):
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
    """The batches of a calibration with other inputs than tokens and a mask, such as `pixel_values` or the types of the
    tokens of a pair of sentences; None for token ids."""
    if isinstance(calibration, Mapping):
        calibration = [calibration]
    if not isinstance(calibration, Iterable) or isinstance(calibration, (Tensor, np.ndarray, str, bytes)):
        return None
    names = inspect.signature(model.forward).parameters.keys() - {"labels", "return_dict"}
    items = list(calibration)
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    items = [
        {n: v for n, v in _read_by_decoder(item, model).items() if n in names and v is not None}
        for item in items
    ]
    if not any(_is_needed(name, value) for item in items for name, value in item.items()):
        return None
    batches = [{n: _tensor(n, v) for n, v in item.items()} for item in items]
    return [
        {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in batch.items()} for batch in batches
    ]


def _read_by_decoder(item: Mapping[str, Any], model: PreTrainedModel) -> Mapping[str, Any]:
    """A batch of an encoder-decoder with what its decoder reads where the batch has only what it should write: `labels`
    `[B, L]`, one place later behind the start token, as the model does for itself; -100 is padding."""
    ids, labels = item.get("decoder_input_ids"), item.get("labels")
    if (start := decoder_start(model)) is None:
        return item
    if ids is not None:
        # Behind the start token, which may be that of padding.
        written = _tensor("decoder_input_ids", ids)[:, 1:]
        if item.get("decoder_attention_mask") is None and written.numel():
            _warn_of_padding(written, model, "decoder_attention_mask")
        return item
    if labels is None or np.ndim(labels) != 2 or not model.can_generate():  # classes of a classifier
        return item
    labels = _integers(labels, one_row=True, expected="labels")
    _warn_of_padding(labels, model, "-100 for padding in labels")
    mask = (labels != IGNORED_LABEL).long()
    text = {"input_ids": labels.masked_fill(mask == 0, _padding_token(model)), "attention_mask": mask}
    read = with_decoder(text, start)
    return {**item, **{name: read[name] for name in read.keys() - text.keys()}}


def _padding_token(model: PreTrainedModel) -> int:
    return getattr(text_config(model), "pad_token_id", None) or 0


def _is_needed(name: str, value: Any) -> bool:
    """Whether an argument of the model says more than tokens and a mask do; tokenizers give all of them type 0."""
    if name == "token_type_ids":
        return bool(_tensor(name, value).any())
    return name not in ("input_ids", "attention_mask")


def _tensor(name: str, value: Any) -> Tensor:
    """An argument of the model."""
    if name in TEXT_INPUTS:
        return _integers(value, one_row=True, expected=name)
    if not isinstance(value, (Tensor, np.ndarray)):
        raise ValueError(f"calibration: expected a tensor or array for {name}, got {type(value).__name__}")
    return torch.as_tensor(value)


def _expect_text(model: PreTrainedModel) -> None:
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"calibration: expected batches of inputs by name, such as {model.main_input_name}, for "
            f"{type(model).__name__}, which does not read text alone, got text or token ids; {BY_NAME}"
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


def _warn_of_padding(
    ids: Tensor, model: PreTrainedModel, means: str = "input_ids and attention_mask"
) -> None:
    config = text_config(model)
    padding = getattr(config, "pad_token_id", None)
    if padding is None or padding in (getattr(config, f"{kind}_token_id", None) for kind in ("bos", "eos")):
        return
    if bool((ids[:, -1] == padding).any() or (ids[:, 0] == padding).any()):
        warnings.warn(
            f"calibration: windows begin or end with the padding token {padding}, which counts as text; pass a dict "
            f"with {means}",
            stacklevel=2,
        )
