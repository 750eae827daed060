"""Launching kernels: on the device and stream of the data, with tensor descriptors where the chip has them."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mikernels.caches import cached
from mikernels.options import Precision
from mikernels.triton_impl.configs import Config, configs, constants, has_descriptors

DTYPES = {
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp16": torch.float16,
    "fp32": torch.float32,
}

PADDING = 256
"""The samples of an operand are padded to a multiple of this, which is a multiple of BK in every configuration."""


class Launcher:
    """Launches kernels on one chip with operands of one precision."""

    def __init__(self, chip: str, precision: Precision, autotune: bool) -> None:
        self.chip = chip
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.autotune = autotune

    def run(self, kernel: Any, grid: tuple[int, ...], *args: Any, **kernel_constants: Any) -> None:
        """Launch on the device of the first argument, on its current stream."""
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **kernel_constants, **OPTIONS)

    def rows_of_operand(
        self, kernel: Any, scores: Tensor, first: int, n_rows: int, max_rows: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Evaluate a few kernel rows of every variable: operand `[n, n_rows * stride]` and row sums `[n, n_rows]`.

        `max_rows` is the block of rows of a program, the same for every launch.
        """
        n_samples = scores.shape[1]
        stride = padded(n_samples)
        operand = scores.new_empty(len(scores), n_rows * stride, dtype=self.dtype)
        sums = scores.new_empty(len(scores), n_rows)
        self.run(
            kernel,
            (len(scores),),
            scores,
            operand,
            sums,
            n_samples,
            first,
            n_rows,
            stride,
            scale,
            BI=max_rows,
            BJ=256,
        )
        return operand, sums

    def run_tiles(
        self, kernel: Any, a: Tensor, b: Tensor, out: Tensor, *args: Any, adds: bool, **kernel_constants: Any
    ) -> None:
        """Launch a tile kernel over operands `a [rows, K]` and `b [cols, K]`.

        `adds`: the kernel adds tiles to `out` instead of storing them, so `out` needs a descriptor as well.

        With `autotune`, the first launch of a kind times the configurations: a kind is a kernel, its constants, the
        precision, the device, and the sizes of the operands to a power of two.
        """

        def launch(config: Config, out: Tensor) -> None:
            blocks = constants(config, self.chip, self.precision)
            grid = (triton.cdiv(a.shape[0], blocks["BM"]) * triton.cdiv(b.shape[0], blocks["BN"]),)
            tensors: list[Any] = [a, b, out]
            if has_descriptors(self.chip):
                tensors[0] = TensorDescriptor.from_tensor(a, [blocks["BM"], blocks["BK"]])
                tensors[1] = TensorDescriptor.from_tensor(b, [blocks["BN"], blocks["BK"]])
                if adds:  # the left and the right half of a tile
                    tensors[2] = TensorDescriptor.from_tensor(out, [blocks["BM"], blocks["BN"] // 2])
            schedule = {"num_warps": config.warps, "num_stages": config.stages}
            kernel[grid](*tensors, *args, **kernel_constants, **blocks, **schedule, **OPTIONS)

        candidates = configs(kernel.__name__, self.chip, self.precision)
        with torch.cuda.device_of(out):
            if self.autotune and len(candidates) > 1:
                sizes = tuple(size.bit_length() for size in (*a.shape, len(b)))  # to a power of two
                kind = (kernel.__name__, self.precision, *sorted(kernel_constants.items()), *sizes)
                chosen = _chosen_configs(out.device)
                if kind not in chosen:
                    scratch = torch.zeros_like(out) if adds else out  # others only write the same again
                    chosen[kind] = min(candidates, key=lambda config: milliseconds(launch, config, scratch))
                launch(chosen[kind], out)
            else:
                launch(candidates[0], out)


OPTIONS = {"enable_fp_fusion": True}  # explicit, since Triton 3.9 warns that the default will change


@cached(maxsize=16)
def _chosen_configs(device: torch.device) -> dict[tuple[Any, ...], Config]:
    """The fastest configuration of each kind of launch that was timed on a device so far."""
    return {}


def milliseconds(launch: Callable[[Config, Tensor], None], config: Config, out: Tensor) -> float:
    """The shortest of three launches on the current stream, after one that compiles."""
    launch(config, out)
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch(config, out)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)


def padded(n_samples: int) -> int:
    """M rounded up to a multiple of `PADDING`."""
    return -(-n_samples // PADDING) * PADDING
