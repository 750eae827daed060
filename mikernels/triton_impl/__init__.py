"""The estimators as Triton kernels for NVIDIA and AMD GPUs; Triton's interpreter runs them on a CPU."""

from collections.abc import Callable

import torch
import triton

from mikernels.errors import UnsupportedError
from mikernels.method import Method
from mikernels.options import Precision, Problem
from mikernels.triton_impl.adaptive_kernels import Adaptive
from mikernels.triton_impl.configs import CHIPS
from mikernels.triton_impl.grid import Grid
from mikernels.triton_impl.kde import Kde
from mikernels.triton_impl.launch import Launcher
from mikernels.triton_impl.renyi2 import Renyi2


def method(problem: Problem, precision: Precision, device: torch.device, autotune: bool) -> Method:
    launcher = Launcher(chip_of(device), precision, autotune)
    if problem.estimator == "adaptive":
        return Adaptive(launcher)
    methods: dict[str, Callable[[Problem, Launcher], Method]] = {"grid": Grid, "kde": Kde, "renyi2": Renyi2}
    return methods[problem.estimator](problem, launcher)


def chip_of(device: torch.device) -> str:
    """The key of `CHIPS` for a device.

    Raises:
        UnsupportedError: the device cannot run the kernels.
    """
    if reason := unsupported(device):
        raise UnsupportedError(f"impl: 'triton' {reason}; use impl='torch' or 'auto'")
    if triton.knobs.runtime.interpret:
        return "interpreter"
    if torch.version.hip is not None:
        return _amd_architecture(device)
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def unsupported(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, as "expects X, got Y"; None if they can."""
    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return (
            f"expects data on a GPU, or Triton's interpreter (TRITON_INTERPRET=1 before the first import of "
            f"triton), got device {str(device)!r}"
        )
    if torch.version.hip is not None:
        known = [chip for chip in CHIPS if chip.startswith("gfx")]
        architecture = _amd_architecture(device)
        return None if architecture in known else f"expects {' or '.join(known)} from AMD, got {architecture}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"expects a GPU of compute capability 8.0 or newer, got {major}.{minor}"
    return None


def _amd_architecture(device: torch.device) -> str:
    """For example "gfx942", of "gfx942:sramecc+:xnack-"."""
    return str(torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0])


def chip_precisions(device: torch.device) -> tuple[Precision, ...]:
    """Precisions that the tensor cores of a device support, in order of preference."""
    return CHIPS[chip_of(device)]
