"""Loading models whose layers have different widths, which stock transformers cannot."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from mikernels.isolation import isolated
from pruning.model.architecture import class_with_code
from pruning.model.ffn import WIDTHS, bind_ffns, widths_in_config
from pruning.model.headers import stored_dtype
from pruning.model.loaded import check_loaded
from pruning.model.surgery import resize_ffns


def is_uneven(config: PretrainedConfig) -> bool:
    """Whether the config, or a sub-config, lists widths of FFNs."""
    return any(
        bool(value) if name == WIDTHS else isinstance(value, PretrainedConfig) and is_uneven(value)
        for name, value in vars(config).items()
    )


def check_even(source: str, config: PretrainedConfig) -> None:
    """Raise unless the layers of the model in `source` have one width, as those that are pruned from disk.

    Raises:
        ValueError: they have not.
    """
    if is_uneven(config):
        raise ValueError(
            f"{source}: expected layers of one width to prune from disk, got others; load the model into memory"
        )


@isolated()
def load_uneven(
    folder: str | Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model whose layers have the different widths listed in its config, as an instance of its class.

    Args:
        dtype: by default the saved one.

    Raises:
        ValueError: weights are missing, or the model has no place for them.
    """
    folder = Path(folder)
    source, config = str(folder), AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    class_: Any = class_with_code(source, config, trust_remote_code=trust_remote_code)

    def build(self: Any, config: PretrainedConfig, *args: Any, **keywords: Any) -> None:
        class_.__init__(self, config, *args, **keywords)
        ffns = bind_ffns(self, class_)
        resize_ffns(ffns, widths_in_config(config, ffns))

    # `from_pretrained` of the stock class would build all layers with one width.
    uneven: Any = type(class_.__name__, (class_,), {"__init__": build, "__module__": class_.__module__})
    model, info = uneven.from_pretrained(
        folder,
        dtype=dtype or stored_dtype(folder) or "auto",
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `check_loaded` names them
    )
    check_loaded(str(folder), model, info)
    model.__class__ = class_
    loaded: PreTrainedModel = model
    return loaded
