"""Tile sizes by kernel, chip, and precision: a few, chosen by register and shared-memory use of the compiled code."""

from typing import Any, NamedTuple

from mikernels.options import Precision

CHIPS: dict[str, tuple[Precision, ...]] = {
    "sm_80": ("int8", "fp16", "fp32"),
    "sm_90": ("int8", "fp16", "fp8", "fp32"),
    "sm_100": ("int8", "fp16", "fp8", "fp32"),
    "gfx942": ("int8", "fp16", "fp32"),
    "interpreter": ("int8", "fp16", "fp8", "fp32"),
}
"""GPU families and the precisions of their tensor cores, in order of preference."""

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "interpreter": 1}
"""Of the largest GPU of a family: programs that run at once and share blocks of operands in L2."""

ITEMSIZE = {"int8": 1, "fp8": 1, "fp16": 2, "fp32": 4}


class Config(NamedTuple):
    """Tile size and schedule of one program; the K block is in bytes, so one config suits every precision."""

    block_m: int
    block_n: int
    bytes_k: int
    warps: int
    stages: int


def configs(kernel: str, chip: str, precision: Precision) -> list[Config]:
    """Configurations for the autotuner; without autotuning, the first one is used."""
    if chip == "interpreter":
        size = 128 if kernel in ("grid_kernel", "counts_kernel") else 64
        return [Config(size, size, 128 * ITEMSIZE[precision], 4, 1)]
    if chip == "gfx942":
        return [Config(128, 128, 128, 8, 2), Config(128, 128, 64, 4, 2)]
    if chip == "sm_80":
        if precision == "fp32":
            return [Config(128, 64, 64, 8, 3)]
        return [Config(128, 128, 64, 8, 4), Config(128, 128, 64, 8, 3)]
    if precision == "fp32":
        return [Config(128, 128, 128, 8, 3)]
    # Triton waits for every int8 product on Hopper. Blocks of 256 bytes, with half of the waits, take 1.36 times as
    # long as these; a second program on the multiprocessor, which computes meanwhile, takes .93 of the time of one with
    # a tile of 128 x 256. For `grid` in fp8, whose sums in float32 are a second accumulator, both fit with four warps.
    if chip == "sm_90" and precision == "int8":
        return [Config(128, 128, 128, 8, 3), Config(128, 128, 128, 4, 3), Config(256, 128, 128, 8, 3)]
    if chip == "sm_90" and precision == "fp8" and kernel == "grid_kernel":
        return [Config(128, 128, 128, 4, 3), Config(128, 128, 128, 8, 4)]
    # The product of several samples is another accumulator.
    if kernel == "kde_kernel" or (precision == "fp8" and chip == "sm_90"):
        return [Config(128, 128, 128, 8, 4), Config(128, 128, 128, 8, 5)]
    return [Config(128, 256, 128, 8, 3), Config(128, 256, 128, 8, 4), Config(256, 128, 128, 8, 3)]


def has_descriptors(chip: str) -> bool:
    """Whether the chip has an engine (TMA) that loads blocks of a tensor and adds blocks to it."""
    return chip in ("sm_90", "sm_100")


def constants(config: Config, chip: str, precision: Precision) -> dict[str, Any]:
    """The constexpr arguments common to all tile kernels."""
    return {
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.bytes_k // ITEMSIZE[precision],
        "GROUP": group(config, chip),
        "TF32": precision == "fp32" and chip != "gfx942",
        "FP32_EVERY": 128 if precision == "fp8" and chip == "sm_90" else None,
    }


def group(config: Config, chip: str) -> int:
    """Rows of tiles to go down before the next column, such that programs that run at once read the fewest rows."""

    def rows_read(size: int) -> float:
        return size * config.block_m + MULTIPROCESSORS[chip] / size * config.block_n

    return min((4, 8, 16, 32), key=rows_read)
