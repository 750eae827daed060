"""Which devices can be computed on."""

import functools

import torch

from mikernels.errors import UnsupportedError


def require_float64(device: torch.device) -> None:
    """Raise UnsupportedError for a device that does not compute in float64, as Apple's GPUs (MPS)."""
    if not _has_float64(device):
        raise UnsupportedError(
            f"device: expected one that computes in float64, such as a CPU or a CUDA GPU, got {str(device)!r}; "
            f"pass device='cpu'"
        )


@functools.cache
def _has_float64(device: torch.device) -> bool:
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        torch.zeros((), dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True
