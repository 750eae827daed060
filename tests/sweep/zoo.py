"""A tiny random model of every architecture of the installed transformers.

`cases()` derives a configuration of each class from its defaults: entries that are known by name (`SIZES`) are set to
small numbers, in sub-configurations too, and `overrides.py` has what single types of models need. Nothing here knows
how models are pruned.
"""

import copy
import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from images import IMAGES
from inputs import FIRST_WORD, LAST_WORD, default_inputs, image_inputs
from overrides import ALIASES, CLASSES, OVERRIDES, UNBUILT
from sizes import SIZES, SPECIAL, TOWERS, WIDTHS
from variants import OTHER_CLASSES, VARIANTS

MAPPINGS = (
    "CAUSAL_LM",
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "TEXT_ENCODING",
    "IMAGE_TEXT_TO_TEXT",
    "SPEECH_SEQ_2_SEQ",
)
"""The Auto classes whose every class has a case: all text classes, vision-language models and speech models."""


@dataclass(frozen=True)
class Case:
    """One architecture. The class and its configuration are made when they are asked for.

    Attributes:
        name: unique: of the class, with what is special behind it where several cases share a class.
        class_name: in transformers.
        entries: of the configuration, beyond what its type needs.
        alias: the type of model, where its configuration is not the class's own.
        with_image: whether the inputs of a vision-language model hold images, or are text alone.
    """

    name: str
    class_name: str
    entries: Mapping[str, Any] = field(default_factory=dict)
    alias: str | None = None
    with_image: bool = False

    @property
    def class_(self) -> type[PreTrainedModel]:
        return getattr(transformers, self.class_name)

    @functools.cached_property
    def config(self) -> PretrainedConfig:
        """Tiny; `build` takes a copy."""
        config_class = CONFIG_MAPPING[self.alias] if self.alias else self.class_.config_class
        padded = {"pad_token_id": 0} if self.class_name.endswith("SequenceClassification") else {}
        return tiny_config(config_class, **padded, **CLASSES.get(self.class_name, {}), **self.entries)

    def build(self) -> PreTrainedModel:
        """The same random weights at each call, larger than the usual ones, so that FFNs and routers matter."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        model = self.class_(copy.deepcopy(self.config)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    def inputs(self, seed: int) -> dict[str, Tensor]:
        """A batch that the model accepts."""
        make = image_inputs if self.with_image else default_inputs
        return make(self.class_, self.config, torch.Generator().manual_seed(seed))


def cases() -> list[Case]:
    """Every class of the mappings that can be built here, each once, and the variants."""
    found = [Case(name, name) for name in OTHER_CLASSES]
    found += [Case(f"{name}[{label}]", name, entries) for name, (label, entries) in VARIANTS]
    listed = {
        (class_name, model_type if model_type in ALIASES else None): None
        for mapping in MAPPINGS
        for model_type, class_name in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items()
    }
    for class_name, alias in listed:
        if class_name not in UNBUILT:
            found.append(Case(f"{class_name}[{alias}]" if alias else class_name, class_name, alias=alias))
            if class_name in IMAGES and not alias:
                found.append(Case(f"{class_name}[image]", class_name, with_image=True))
    return found


def shrink(config: PretrainedConfig, path: str = "") -> dict[str, Any]:
    """The arguments that make a tiny configuration like `config`, which has its defaults."""
    arguments: dict[str, Any] = {}
    special = LAST_WORD
    values = vars(config)
    for name, value in values.items():
        if isinstance(value, PretrainedConfig):
            arguments[name] = type(value)(**merged(shrink(value, f"{path}.{name}"), _overrides(value)))
        elif name == "conv_dim" and isinstance(value, list | tuple):
            arguments[name] = [8] * len(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name in SPECIAL:
            arguments[name] = SPECIAL[name]
        elif name.endswith(("token_id", "token_index", "_id", "_index")) and value >= FIRST_WORD:
            special += 1
            arguments[name] = special
        elif name in SIZES:
            arguments[name] = SIZES[name]
            if name in WIDTHS:
                arguments[name] = next((w for tower, w in TOWERS.items() if tower in path), SIZES[name])
    for prefix in ("", "encoder_", "decoder_", "swa_", "cross_"):
        heads, groups = f"{prefix}num_attention_heads", f"{prefix}num_key_value_heads"
        if groups in arguments and values.get(heads) == values[groups]:  # not all classes can group heads
            arguments[groups] = arguments[heads]
    if values.get("head_dim") is not None and values.get("head_dim") == values.get("qk_rope_head_dim"):
        arguments["head_dim"] = arguments["qk_rope_head_dim"]
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = values.get(name)
        if isinstance(kinds, list) and "num_hidden_layers" in arguments:  # every kind of layer occurs
            depth = max(kinds.index(kind) for kind in set(kinds)) + 1
            arguments["num_hidden_layers"] = max(depth, arguments["num_hidden_layers"])
    rope = values.get("rope_parameters") or {}
    if "mrope_section" in rope:
        size = arguments.get("head_dim") or arguments["hidden_size"] // arguments["num_attention_heads"]
        total = int(size * rope.get("partial_rotary_factor", 1)) // 2
        sections = [total - 2 * (total // 3), total // 3, total // 3]
        arguments["rope_parameters"] = rope | {"mrope_section": sections}
    return arguments


def _overrides(config: PretrainedConfig) -> dict[str, Any]:
    return copy.deepcopy(OVERRIDES.get(config.model_type, {}))


def merged(arguments: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` over `arguments`; a mapping for a sub-configuration changes entries of it."""
    for name, value in overrides.items():
        old = arguments.get(name)
        if isinstance(old, PretrainedConfig) and isinstance(value, Mapping):
            entries = {key: entry for key, entry in old.to_dict().items() if key in shrink(type(old)())}
            arguments[name] = type(old)(**merged(entries, _overrides(old) | dict(value)))
        else:
            arguments[name] = value
    return arguments


def tiny_config(config_class: type[PretrainedConfig], **entries: Any) -> PretrainedConfig:
    default = config_class()
    arguments = merged(shrink(default), _overrides(default))
    return config_class(**merged(arguments, entries))
