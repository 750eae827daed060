"""The windows of tokens that a model is calibrated on."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.families import text_config
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.settings import Settings

COMPARISON_TOKENS = 2048
"""Enough tokens to tell layers and selections apart."""


def calibration_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: str | Path | Tensor | None,
    settings: Settings,
) -> Tensor:
    """Windows of token ids `[n, L]`, from the sources that `pruning.prune` accepts.

    Raises:
        ValueError: not such a source, too little text, or windows longer than the model accepts.
    """
    windows = _windows(model, tokenizer, calibration, settings)
    longest = getattr(text_config(model), "max_position_embeddings", windows.shape[1])
    if windows.shape[1] > longest:
        raise ValueError(
            f"sequence_length: expected at most the {longest} positions of the model, got {windows.shape[1]}"
        )
    return windows


def comparison_batches(windows: Tensor, batch_size: int) -> Sequence[Tensor]:
    """About 2,048 tokens of the windows `[n, L]`, spread evenly over them, in batches `[B, L]`."""
    count = min(len(windows), -(-COMPARISON_TOKENS // windows.shape[1]))
    return windows[[i * len(windows) // count for i in range(count)]].split(batch_size)


def _windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: str | Path | Tensor | None,
    settings: Settings,
) -> Tensor:
    if isinstance(calibration, Tensor):
        if calibration.ndim != 2 or calibration.is_floating_point() or calibration.numel() == 0:
            raise ValueError(
                f"calibration: expected windows of token ids [n, L], got {calibration.dtype} {list(calibration.shape)}"
            )
        return calibration
    if tokenizer is None:
        raise ValueError("tokenizer: expected one for calibration text, got None")
    if calibration is None:
        calibration = builtin_text()[0]
    if isinstance(calibration, str) and len(calibration) < 256 and Path(calibration).is_file():
        raise ValueError(
            f"calibration: expected text, got the name of a file; pass Path({calibration!r}) to read it"
        )
    text = read_text(calibration) if isinstance(calibration, Path) else calibration
    limit = max(1, settings.calibration_tokens // settings.sequence_length)
    return token_windows(
        tokenizer,
        text,
        settings.sequence_length,
        limit=limit,
        special_tokens=not model.can_generate(),
        bos=settings.bos,
    )
