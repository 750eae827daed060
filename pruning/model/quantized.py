"""Checkpoints with quantized weights, which transformers de-quantizes while it reads them."""

import inspect
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

ENTRY = "quantization_config"


def dequantize(source: str, config: PretrainedConfig) -> None:
    """Have transformers de-quantize the weights of a model with this config while it reads them.

    Raises:
        ValueError: it cannot, for this kind of quantization.
    """
    for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        entries: dict[str, Any] | None = getattr(part, ENTRY, None)
        if entries is None:
            continue
        if (method := entries.get("quant_method")) not in _methods():
            raise ValueError(
                f"{source}: expected weights that transformers de-quantizes ({', '.join(_methods())}), got "
                f"{ENTRY} of {method}; de-quantize the model first"
            )
        entries["dequantize"] = True


def find_quantizer(config: PretrainedConfig) -> Any:
    """What reads the weights of a model with a config that `dequantize` has seen, or None."""
    entries = getattr(config, ENTRY, None)
    return None if entries is None else AutoHfQuantizer.from_config(entries, pre_quantized=True)


def forget_quantization(model: PreTrainedModel) -> None:
    """Make a model that was de-quantized an ordinary one, which is not quantized again when it is saved."""
    if hasattr(model.config, ENTRY):
        delattr(model.config, ENTRY)
    for name in ("hf_quantizer", "quantization_method", "_weight_conversions"):
        vars(model).pop(name, None)
    model.is_quantized = False


def _methods() -> list[str]:
    """Kinds of quantization that transformers de-quantizes."""
    mapping = AUTO_QUANTIZATION_CONFIG_MAPPING.items()
    return sorted(n for n, c in mapping if n != "gguf" and "dequantize" in inspect.signature(c).parameters)
