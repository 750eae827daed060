"""Launching kernels: on the device and stream of the data, with tensor descriptors where the chip has them."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mikernels.options import Precision
from mikernels.triton_impl.configs import Config, configs, constants, has_descriptors

DTYPES = {
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp16": torch.float16,
    "fp32": torch.float32,
}

PADDING = 128
"""The samples of an operand are padded to a multiple of this, which is a multiple of BK in every configuration."""


class Launcher:
    """Launches kernels on one chip with operands of one precision."""

    def __init__(self, chip: str, precision: Precision, autotune: bool) -> None:
        self.chip = chip
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.autotune = autotune and chip != "interpreter"

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
        """

        def grid(meta: dict[str, int]) -> tuple[int]:
            return (triton.cdiv(a.shape[0], meta["BM"]) * triton.cdiv(b.shape[0], meta["BN"]),)

        config = configs(kernel.__name__, self.chip, self.precision)[0]
        blocks = constants(config, self.chip, self.precision)
        tensors: list[Any] = [a, b, out]
        if has_descriptors(self.chip):
            for position in range(3 if adds else 2):
                tensors[position] = TensorDescriptor.from_tensor(tensors[position], [1, 1])
            set_block_shapes(dict(zip(kernel.arg_names, tensors, strict=False)) | blocks)
        with torch.cuda.device_of(out):
            if self.autotune:
                tuned = _tuned(kernel, self.chip, self.precision, adds)
                tuned[grid](*tensors, *args, **kernel_constants, **OPTIONS)
            else:
                launch = {"num_warps": config.warps, "num_stages": config.stages}
                kernel[grid](*tensors, *args, **kernel_constants, **blocks, **launch, **OPTIONS)


OPTIONS = {"enable_fp_fusion": True}  # explicit, since Triton 3.9 warns that the default will change


def set_block_shapes(named: dict[str, Any]) -> None:
    """Set the block shapes of the descriptors among the arguments from the block sizes among them."""
    blocks = {
        "a": [named["BM"], named["BK"]],
        "b": [named["BN"], named["BK"]],
        "out": [named["BM"], named["BN"] // 2],
    }
    for name, block in blocks.items():
        if isinstance(named.get(name), TensorDescriptor):
            named[name].block_shape = block


@functools.cache
def _tuned(kernel: Any, chip: str, precision: Precision, adds: bool) -> Any:
    """`kernel` with an autotuner, whose choice is cached on disk and repeated for each S."""

    def as_triton(config: Config) -> triton.Config:
        blocks = constants(config, chip, precision)
        return triton.Config(
            blocks, num_warps=config.warps, num_stages=config.stages, pre_hook=set_block_shapes
        )

    return triton.autotune(
        [as_triton(config) for config in configs(kernel.__name__, chip, precision)],
        key=["S"] if "S" in kernel.arg_names else [],
        restore_value=["out"] if adds else [],
        cache_results=True,
    )(kernel)


def padded(n_samples: int) -> int:
    """M rounded up to a multiple of `PADDING`."""
    return -(-n_samples // PADDING) * PADDING
