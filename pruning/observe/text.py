"""Reading text and cutting it into windows of tokens."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

LEAST_BUILTIN = 50_000
"""Characters that the builtin text has at least; some builds of Python come without most of it."""


def builtin_text() -> tuple[str, str]:
    """Two disjoint halves of the language reference that ships with CPython, for calibration and for evaluation.

    About 230,000 characters each; the exact text depends on the Python version.

    Raises:
        ValueError: this Python comes without it.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    text = "\n\n".join(topics[key] for key in sorted(topics))
    if len(text) < LEAST_BUILTIN:
        raise ValueError(
            f"builtin text: expected the language reference that ships with CPython, at least {LEAST_BUILTIN:,} "
            f"characters, got {len(text):,} in pydoc_data.topics of this Python; give text of your own with "
            f"--calibration and --evaluate"
        )
    middle = text.index("\n\n", len(text) // 2)
    return text[:middle], text[middle:]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        ValueError: not UTF-8, or only white space.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#x} at {error.start}"
        ) from error
    if not text.strip():
        raise ValueError(f"{path}: expected text, got an empty file")
    return text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> BatchEncoding:
    """What `tokenizer(text, **options)` gives.

    A call leaves its own truncation and padding in a fast tokenizer, which saves them with the model: programs that
    read `tokenizer.json` by themselves would then cut every text to the length of a window. Here they stay as before.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = (None, None) if backend is None else (backend.truncation, backend.padding)
    try:
        return tokenizer(text, **options)
    finally:
        if backend is not None:
            backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
            backend.no_padding() if padding is None else backend.enable_padding(**padding)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts in front of a text by itself: a BOS token as a rule, or nothing."""
    return around_text(tokenizer)[0]


def around_text(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts in front of a text and behind it by itself."""
    for text in ("a", "A", "0"):  # a tokenizer may have no token for one of them
        complete = encode(tokenizer, text)["input_ids"]
        plain = encode(tokenizer, text, add_special_tokens=False)["input_ids"]
        for start in range(len(complete) - len(plain) + 1 if plain else 0):
            end = start + len(plain)
            if complete[start:end] == plain:
                return list(complete[:start]), list(complete[end:])
    return [], []


def token_windows(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    length: int,
    *,
    limit: int | None = None,
    special_tokens: bool = False,
    bos: bool = True,
) -> Tensor:
    """Non-overlapping windows of the text, `[n, length]` int64; a rest shorter than a window is dropped.

    Args:
        limit: at most this many windows, spread evenly over the text, whose beginning alone is less typical.
        special_tokens: make each window a complete sequence with all of the tokenizer's special tokens (for encoders).
        bos: otherwise begin each window with the tokens that the tokenizer puts in front of a text (`beginning`).

    Raises:
        ValueError: the text does not fill one window, the length leaves no room for text, or special tokens that are
            not the same around every text.
    """
    prefix, suffix = around_text(tokenizer)
    if special_tokens:
        if len(prefix) + len(suffix) != tokenizer.num_special_tokens_to_add():
            raise ValueError(
                f"tokenizer: expected one that puts {tokenizer.num_special_tokens_to_add()} special tokens around a "
                f"text, got {prefix} and {suffix} from {type(tokenizer).__name__}; pass windows of token ids"
            )
    else:
        prefix, suffix = prefix if bos else [], []
    step = length - len(prefix) - len(suffix)
    if step < 2:
        raise ValueError(f"length: expected windows of at least {length - step + 2} tokens, got {length}")
    # Not by the tokenizer's own truncation: version 0.23.2 of tokenizers loses what follows the first window.
    ids = encode(tokenizer, text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [[*prefix, *ids[start : start + step], *suffix] for start in range(0, len(ids), step)]
    windows = [piece for piece in pieces if len(piece) == length]
    count = len(windows) if limit is None else min(limit, len(windows))
    if not windows:
        raise ValueError(f"text: expected at least {length} tokens, got {len(pieces[0]) if pieces else 0}")
    return torch.tensor([windows[i * len(windows) // count] for i in range(count)], dtype=torch.int64)
