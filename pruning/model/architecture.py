"""Which class a checkpoint belongs to. Never a guess: the wrong one has weights that the checkpoint lacks."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype
from transformers.models.auto import modeling_auto

from pruning.model.headers import read_headers


def model_class(source: str, config: PretrainedConfig) -> Any:
    """The class that the checkpoint `source` was saved from.

    It is the one that the config names. If the config names none, it is the only class for this type of config whose
    weights are all in the safetensors files of the folder `source`.

    Raises:
        ValueError: transformers has no such class, or several or none fit the files.
    """
    remote = getattr(config, "auto_map", None) or {}
    names = config.architectures or ()
    for name in names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in (AutoModelForCausalLM, AutoModel):
        if auto.__name__ in remote:
            return auto
    if names:
        raise ValueError(
            f'{source}: expected a class of transformers under "architectures" in config.json, got {", ".join(names)}'
        )
    fitting = _fitting_classes(source, config)
    if len(fitting) == 1:
        return fitting[0]
    found = (
        " or ".join(sorted(c.__name__ for c in fitting)) or "no class of transformers that fits its weights"
    )
    raise ValueError(
        f'{source}: expected a class under "architectures" in config.json, got none; its weights fit {found}; add '
        f'a line such as "architectures": ["{(fitting or _classes(config) or [AutoModel])[0].__name__}"]'
    )


def class_with_code(
    source: str, config: PretrainedConfig, *, trust_remote_code: bool
) -> type[PreTrainedModel]:
    """What `model_class` returns, but the model's own class in place of an Auto class.

    Raises:
        ValueError: see `model_class`; or its code comes with the model and is not trusted.
    """
    class_ = model_class(source, config)
    if isinstance(class_, type) and issubclass(class_, PreTrainedModel):
        return class_
    if not trust_remote_code:
        raise ValueError(
            f"{source}: expected a class of transformers, got one whose code comes with the model; if you trust it, "
            f"use trust_remote_code=True (--trust-remote-code)"
        )
    repository, _, name = config.auto_map[class_.__name__].rpartition("--")
    own: type[PreTrainedModel] = get_class_from_dynamic_module(name, repository or source)
    own.register_for_auto_class(class_.__name__)  # saves the code with the model
    return own


def empty_model(class_: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """An instance on the `meta` device: names, shapes and ties of the weights, without memory for them."""
    with torch.device("meta"), no_init_weights():
        model = class_(copy.deepcopy(config))
    model.tie_weights()  # which building without initialization does not do
    return model


def _classes(config: PretrainedConfig) -> list[type[PreTrainedModel]]:
    """The classes that the Auto classes of transformers know for this type of config."""
    found: dict[type[PreTrainedModel], None] = {}
    for name in dir(modeling_auto):
        if name.startswith("MODEL_") and name.endswith("MAPPING"):
            classes = getattr(modeling_auto, name).get(type(config), ())
            found |= dict.fromkeys(classes if isinstance(classes, (list, tuple)) else (classes,))
    return sorted(found, key=lambda class_: class_.__name__)


def _fitting_classes(source: str, config: PretrainedConfig) -> list[type[PreTrainedModel]]:
    """The classes whose weights are all stored, and that leave the fewest stored weights over."""
    stored = set(read_headers(Path(source))) if Path(source).is_dir() else set()
    fitting: dict[type[PreTrainedModel], int] = {}
    for class_ in _classes(config):
        try:
            model = empty_model(class_, config)
        except Exception:  # noqa: S112, a class that this config does not suit
            continue
        names = set(model.state_dict())
        tied = set(model.all_tied_weights_keys)
        if names - tied <= stored:
            fitting[class_] = len(stored - names)
    return [class_ for class_, left_over in fitting.items() if left_over == min(fitting.values())]


def without_weights(
    class_: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """An instance with all buffers, but with parameters on the `meta` device."""
    try:
        from accelerate import init_empty_weights  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "on_disk: expected accelerate to be installed; run: pip install 'mikernels[large]'"
        ) from error
    config = copy.deepcopy(config)
    config.dtype = dtype
    # As `from_pretrained` does; buffers that are not stored, such as tables of positions, it computes again behind it.
    with local_torch_dtype(dtype), init_empty_weights(include_buffers=False), no_init_weights():
        model = class_(config)
    for stored in model.state_dict(keep_vars=True).values():
        stored._is_hf_initialized = True
    model.initialize_weights()
    model.tie_weights()
    return model.eval()
