"""The device to compute on."""

import torch
from torch import nn
from transformers import PreTrainedModel

from mikernels.devices import require_float64


def find_device(name: str | None) -> str:
    """`name` if this machine has such a device; by default a GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: no such device here, or one without float64.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise ValueError("it computes nothing")
        torch.empty(1, device=name)
        require_float64(torch.device(name))
    except Exception as error:  # a missing CUDA raises an AssertionError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device: expected a device of this machine, such as 'cpu', got {name!r}: {reason}"
        ) from error
    return name


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: on the device of its first weight, also if accelerate has offloaded that."""
    if model.device.type != "meta":
        return model.device
    return next((device for device in map(_execution_device, model.modules()) if device), model.device)


def _execution_device(module: nn.Module) -> torch.device | None:
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)
