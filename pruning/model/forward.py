"""How a model is called to compute only the outputs of the windows that it is given."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

BY_NAME = "call pruning.prune in Python, with batches of its inputs by name as calibration"
"""What to do with a model that reads more than text."""


def without_cache(model: PreTrainedModel) -> dict[str, Any]:
    """The arguments with which a forward pass of `model` keeps no KV cache.

    A cache that is kept, or replayed with the arguments of a layer, would let a window attend to tokens of another.
    """
    own = inspect.signature(model.forward).parameters
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values())
    parts = [
        part for part in model.modules() if isinstance(part, PreTrainedModel)
    ]  # such as a language model
    accepts = _names_cache(model) or (passes_on and any(map(_names_cache, parts)))
    return {"use_cache": False} if accepts else {}


def modalities(model: PreTrainedModel) -> tuple[str, ...]:
    """What a model reads, such as "text" and "image"."""
    found = model.input_modalities
    return (found,) if isinstance(found, str) else tuple(found)


def is_causal(model: PreTrainedModel) -> bool:
    """Whether the model outputs logits of the next tokens of the text that it reads."""
    return model.can_generate() and not model.config.is_encoder_decoder


def comparable_part(model: PreTrainedModel) -> PreTrainedModel:
    """The part whose first output is `[B, L, ...]`: all of a language model, which outputs logits of the next tokens,
    otherwise the model without its head, such as a classifier's."""
    part: PreTrainedModel = model if is_causal(model) else model.base_model
    return part


def body_of(model: PreTrainedModel, inputs: Mapping[str, Any]) -> PreTrainedModel:
    """The part of the model that is enough to compute all FFNs: without its head, if that takes the same inputs."""
    body: PreTrainedModel = model.base_model
    named = inspect.signature(body.forward).parameters
    return body if inputs.keys() <= named.keys() else model


def _names_cache(module: nn.Module) -> bool:
    return "use_cache" in inspect.signature(module.forward).parameters
