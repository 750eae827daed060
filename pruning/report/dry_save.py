"""Trying early what could otherwise fail when a result is saved, after all the work is done."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def dry_save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write everything of a checkpoint but its weights to a temporary folder: the configs and the tokenizer.

    Raises:
        ValueError: a part of it cannot be saved, such as a generation config that transformers refuses.
        OSError: from writing.
    """
    parts: list[tuple[str, Any]] = [("config", model.config)]
    if model.can_generate():
        parts.append(("generation_config", model.generation_config))
    if tokenizer is not None:
        parts.append(("tokenizer", tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts:
            try:
                part.save_pretrained(folder)
            except OSError:
                raise
            except Exception as error:
                raise ValueError(
                    f"{name}: expected one that can be saved with the pruned model, got: {error}"
                ) from error
        if not Path(folder, "config.json").is_file():
            raise ValueError(f"config: expected {type(model).__name__} to save its config, got none")
