"""The dtype to compute in, where it is not the stored one, and the way back.

A wider dtype holds every value of a narrower one, so weights that pruning does not change come back bit for bit.
"""

import torch
from torch import Tensor, nn

Dtypes = dict[str, torch.dtype]


def working_dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, otherwise float32.

    A CPU does so with AVX512-BF16. With AVX-512 alone bfloat16 products take four times as long as float32 (measured
    on a Xeon of Ice Lake), without it hundreds of times.
    """
    fast = device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def computing_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """The fastest dtype that holds every value of `stored`: itself, or float32 if the CPU is slow with 16 bits."""
    if stored is torch.bfloat16:
        return working_dtype(device)
    return torch.float32 if stored is torch.float16 and device == "cpu" else stored


def weight_dtypes(model: nn.Module) -> Dtypes:
    """The dtype of each floating-point weight, by name."""
    return {name: weight.dtype for name, weight in _weights(model).items()}


def set_dtypes(model: nn.Module, dtypes: Dtypes, default: torch.dtype) -> None:
    """Convert the weights in place; those without an entry in `dtypes`, such as added biases, to `default`.

    Buffers that are not saved, such as rotary frequencies, keep their precision.

    Raises:
        ValueError: a value is too large for its dtype. The model is then unchanged.
    """
    weights = _weights(model)
    converted: dict[str, Tensor] = {}
    for name, weight in weights.items():
        converted[name] = weight.data.to(dtypes.get(name, default))
        overflows = torch.finfo(converted[name].dtype).max < torch.finfo(weight.dtype).max
        if overflows and not torch.equal(converted[name].isfinite(), weight.isfinite()):
            raise ValueError(
                f"{name}: expected values within the range of {converted[name].dtype}, got "
                f"{float(weight.detach().abs().max()):g}; save in another dtype"
            )
    for name, weight in weights.items():
        weight.data = converted[name]


def round_weights(model: nn.Module, dtypes: Dtypes, default: torch.dtype) -> None:
    """Give the weights the values that they have in other dtypes; arguments and errors are those of `set_dtypes`."""
    computing = weight_dtypes(model)
    set_dtypes(model, dtypes, default)
    set_dtypes(model, computing, default)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters and saved buffers, by name; shared ones once."""
    saved = model.state_dict(keep_vars=True)
    unique = {id(tensor): name for name, tensor in reversed(saved.items())}
    return {name: saved[name] for name in reversed(unique.values()) if saved[name].is_floating_point()}
