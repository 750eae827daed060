"""Loading models from a folder, a GGUF file or the Hugging Face hub; weights come from safetensors only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from mikernels.isolation import isolated
from pruning.model.architecture import model_class
from pruning.model.device import find_device
from pruning.model.ffn import check_found
from pruning.model.forward import BY_NAME
from pruning.model.gguf_tokenizer import check_gguf_tokenizer
from pruning.model.headers import read_headers, stored_dtype
from pruning.model.knobs import find_knobs
from pruning.model.loaded import check_loaded, lacks_head
from pruning.model.precision import working_dtype
from pruning.model.quantized import dequantize, find_quantizer, forget_quantization
from pruning.model.uneven import is_uneven, load_uneven

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@isolated()
def load_model(
    source: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder, a GGUF file (de-quantized) or a name on the Hugging Face hub.

    Args:
        dtype: of the weights; by default the stored one, of a GGUF file `working_dtype`. 16 bits are slow on some CPUs
            (`pruning.model.precision`).
        device: by default a GPU if there is one.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the checkpoint is pickled, lacks weights or has too many, or has adapters beside the weights; its
            class cannot be told; its tokenizer cannot be loaded, or not as the GGUF file says; or the architecture
            needs remote code.
    """
    device = find_device(device)
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"{source}: no such GGUF file")
        model, tokenizer = _load_gguf(path, dtype or working_dtype(device))
        return model.to(device).eval(), tokenizer
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise FileNotFoundError(f"{source}: no such folder")
    config, class_ = class_of_folder(path, trust_remote_code=trust_remote_code)
    if path.is_dir() and is_uneven(config):
        model = load_uneven(path, dtype, trust_remote_code=trust_remote_code)
    else:
        options: dict[str, Any] = {
            "config": config,
            "dtype": dtype or (stored_dtype(path) if path.is_dir() else None) or "auto",
            "use_safetensors": True,
            "trust_remote_code": trust_remote_code,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # `check_loaded` names them
        }
        model, info = class_.from_pretrained(source, **options)
        if lacks_head(model, info):
            body = type(model.base_model)
            warnings.warn(
                f"{source}: the weights of {class_.__name__} beyond {body.__name__} are not stored, so it is loaded "
                f"and saved as {body.__name__}",
                stacklevel=2,
            )
            model, info = body.from_pretrained(source, **options)
        check_loaded(source, model, info)
        if find_quantizer(config) is not None:
            forget_quantization(model)
    tokenizer = load_tokenizer(source, model, trust_remote_code=trust_remote_code)
    return model.to(device).eval(), tokenizer


def class_of_folder(path: Path, *, trust_remote_code: bool) -> tuple[PretrainedConfig, Any]:
    """The config and the class of a model in a folder, or of this name on the hub; the weights are not read.

    Raises:
        ValueError: see `load_model`.
    """
    source = str(path)
    if path.is_dir():
        _refuse_pickles(path)
    if find_adapter_config_file(source) is not None:
        raise _adapter_error(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if path.is_dir():
        _refuse_eight_bits(path, config)
    dequantize(source, config)
    class_ = model_class(source, config)
    if isinstance(class_, type) and issubclass(class_, PreTrainedModel):
        check_found(class_.__name__, find_knobs(class_, config))
    return config, class_


def class_of_gguf(path: Path) -> tuple[PretrainedConfig, Any]:
    """The config and the class of a model in a GGUF file.

    Raises:
        ValueError: a file that is cut off, or of an architecture that transformers does not load from GGUF.
    """
    with _readable(path):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    return config, AutoModelForCausalLM._model_mapping[type(config)]


def generation_config(folder: Path) -> GenerationConfig:
    """That of a model in a folder, as `from_pretrained` finds it: older models have it in their config."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file.

    Raises:
        ValueError: a file that is cut off, or see `check_gguf_tokenizer`.
    """
    with _readable(path):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    check_gguf_tokenizer(path, tokenizer)
    return tokenizer


def load_tokenizer(
    source: str, model: PreTrainedModel, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ValueError: it cannot be loaded, or the model does not read text.
    """
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, KeyError, OSError) as error:
        if model.main_input_name != "input_ids":
            raise ValueError(
                f"{source}: expected a model of text with a tokenizer, got {type(model).__name__}, which reads "
                f"{model.main_input_name}; load it with transformers and {BY_NAME}"
            ) from error
        raise ValueError(f"{source}: expected a tokenizer that can be loaded, got: {error}") from error


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_gguf_tokenizer(path)  # before the weights, which take long
    folder, name = str(path.parent), path.name
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # transformers 5.17 has none and always de-quantizes
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # `check_loaded` names them
    with _readable(path):
        model, info = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype, **options)
    check_loaded(str(path), model, info)
    forget_quantization(model)
    return model, tokenizer


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the GGUF file that transformers cannot read in the block."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a GGUF file that transformers can read, got: {error}") from error


def _adapter_error(source: str) -> ValueError:
    return ValueError(
        f"{source}: expected a model, got one with adapter files; load it with peft, call merge_and_unload() and save "
        f"the result"
    )


def _refuse_eight_bits(folder: Path, config: PretrainedConfig) -> None:
    """Raise for weights of 8 bits that the config does not mention: transformers would read them without a scale."""
    if getattr(config, "quantization_config", None) is not None:
        return
    for name, entry in read_headers(folder).items():
        if entry.dtype.startswith("F8"):
            raise ValueError(
                f"{folder}: expected weights of 16 bits or more, got {entry.dtype} for {name} and no "
                f"quantization_config in config.json; de-quantize the model first"
            )


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("adapter_model.*")):
        raise _adapter_error(str(folder))
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: expected safetensors, got {', '.join(pickles)}; pickled checkpoints can run arbitrary code "
            f"and are refused"
        )
    raise FileNotFoundError(f"{folder}: expected a model in safetensors, got none")
