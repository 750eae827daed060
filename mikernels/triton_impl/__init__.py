"""The estimators as Triton kernels, on NVIDIA and AMD GPUs, or on a CPU under Triton's interpreter."""

from collections.abc import Callable

import torch
import triton

from mikernels.method import Method
from mikernels.options import Precision, Problem
from mikernels.triton_impl.adaptive import Adaptive
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
    """The family of `CHIPS` that a device is of.

    Raises:
        ValueError: the device runs no Triton kernels.
    """
    if triton.knobs.runtime.interpret:
        return "interpreter"
    if device.type != "cuda":
        raise ValueError(
            f"impl: 'triton' expects data on a GPU, or Triton's interpreter (TRITON_INTERPRET=1 before the "
            f"first import of triton), got device {str(device)!r}"
        )
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(
            f"impl: 'triton' expects a GPU of compute capability 8.0 or newer, got {major}.{minor}"
        )
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def chip_precisions(device: torch.device) -> tuple[Precision, ...]:
    """The precisions that tensor cores of a device have, the one to prefer first."""
    return CHIPS[chip_of(device)]
