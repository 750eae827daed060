"""The device to compute on."""

import torch

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
