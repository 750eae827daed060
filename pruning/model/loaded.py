"""Checking that the weights of a loaded model are those of its checkpoint: nothing missing, random or lost."""

import warnings
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

WRAPPERS = ("_orig_mod.", "module.")
"""What `torch.compile`, and DataParallel or DDP, put in front of the names of the weights."""
SHOWN = 3
"""Names in an error message."""


def check_loaded(source: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a model with weights that are not from its checkpoint; warn about weights that it has no place for.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returned. Tied weights do not count as missing.

    Raises:
        ValueError: weights are missing, have other shapes, or belong to the body of the model but not to its config,
            such as the layers beyond `num_hidden_layers`. The message names the first few.
    """
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    mismatched = {name: (stored, expected) for name, stored, expected in info["mismatched_keys"]}
    advice = _advice(unexpected)
    class_name = type(model).__name__
    if missing:
        raise ValueError(
            f"{source}: expected all weights of {class_name}, got none named {name_some(missing)}{advice}"
        )
    if mismatched:
        name = min(mismatched)
        stored, expected = (tuple(shape) for shape in mismatched[name])
        raise ValueError(
            f"{source}: expected the shapes of {class_name} with this config, got {stored} instead of {expected} for "
            f"{name_some(mismatched)}"
        )
    if info["error_msgs"]:
        raise ValueError(f"{source}: {'; '.join(info['error_msgs'])}")
    body = {name for name in unexpected if _is_in_body(model, name)}
    if body:
        raise ValueError(
            f"{source}: expected the weights that its config describes, got more, named {name_some(body)}{advice}"
        )
    if unexpected:
        warnings.warn(
            f"{source}: {class_name} has no place for {name_some(unexpected)}; the pruned model will not have them",
            stacklevel=3,
        )


def lacks_head(model: PreTrainedModel, info: dict[str, Any]) -> bool:
    """Whether all that the checkpoint lacks is a head that is not for generating text, as where sentence-transformers
    saved the body of a masked language model and left the name of the latter in the config.

    Args:
        info: as in `check_loaded`.
    """
    missing = info["missing_keys"]
    has_head = model.base_model is not model and not model.can_generate()
    return has_head and bool(missing) and not any(_is_in_body(model, name) for name in missing)


def name_some(names: Collection[str]) -> str:
    """The first few of `names`, and how many there are."""
    more = f" ({len(names)} in total)" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _advice(unexpected: Collection[str]) -> str:
    for prefix in WRAPPERS:
        if any(name.startswith(prefix) or f".{prefix}" in name for name in unexpected):
            return f"; its weights have names with {prefix!r}, so re-save the unwrapped model"
    if any("lora_" in name or ".base_layer." in name for name in unexpected):
        return "; it has adapter weights, so call merge_and_unload() and save the result"
    return ""


def _is_in_body(model: PreTrainedModel, name: str) -> bool:
    """Whether the innermost module of the model that contains `name` is a part of its body, without the heads."""
    modules = dict(model.named_modules())
    body = next((n for n, module in modules.items() if module is model.base_model), "")
    path = name
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path not in ("", body) and (path.startswith(f"{body}.") if body else True)
