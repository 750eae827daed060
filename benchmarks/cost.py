"""What a matrix of mutual information costs, and the least time that a chip could take for it and for all of pruning.

    python -m benchmarks.cost [--N 11008]

Counted, not measured: operations of the tensor cores, bytes from device memory and from L2, and special functions
(exponentials and logarithms), for the kernels of `mikernels.triton_impl` with their shipped tiles. The floor is the
largest of the four times; a measured time stands beside it where there is one (`benchmarks.gpu`). The other stages
of pruning a model are floors too: their products at the chip's rate, and a disk to save to.
"""

import argparse
from dataclasses import dataclass
from typing import NamedTuple

from mikernels.options import Precision
from mikernels.triton_impl.configs import CHIPS, ITEMSIZE, configs


@dataclass(frozen=True)
class Chip:
    """Peak rates of a chip, per second.

    Attributes:
        family: of `mikernels.triton_impl.configs`.
        matrix: dense operations of the tensor cores by operand, from the maker's data sheet; float32 operands
            take three products in TF32 (AMD: the float32 matrix rate).
        memory: bytes of device memory, from the data sheet.
        l2: bytes that L2 gives to the multiprocessors; published microbenchmarks, good to a fifth.
        special: exponentials or logarithms, 16 per clock and multiprocessor at the boost clock.
        algebra: operations of products and factorisations in the maker's libraries, from the data sheet: on each of
            these chips float32 without TF32 and float64 on the tensor cores have the same peak.
    """

    family: str
    matrix: dict[str, float]
    memory: float
    l2: float
    special: float
    algebra: float


HOPPER = {"fp16": 989e12, "int8": 1979e12, "fp8": 1979e12, "fp32": 495e12 / 3}
CHIP = {
    "H100": Chip("sm_90", HOPPER, 3.35e12, 5.5e12, 16 * 132 * 1.755e9, 67e12),
    "H200": Chip("sm_90", HOPPER, 4.8e12, 5.5e12, 16 * 132 * 1.755e9, 67e12),
    "A100": Chip(
        "sm_80", {"fp16": 312e12, "int8": 624e12, "fp32": 156e12 / 3}, 2.04e12, 4.0e12, 16 * 108 * 1.41e9, 19.5e12
    ),
    "MI300X": Chip(
        "gfx942", {"fp16": 1307e12, "int8": 2615e12, "fp32": 163e12}, 5.3e12, 10e12, 16 * 304 * 2.1e9, 163e12
    ),
}  # fmt: skip


class Work(NamedTuple):
    """What has to be done for one symmetric matrix."""

    matrix_ops: float
    memory_bytes: float
    l2_bytes: float
    special: float

    def seconds(self, chip: Chip, precision: Precision) -> dict[str, float]:
        """The time of each resource were it the only one."""
        return {
            "tensor cores": self.matrix_ops / chip.matrix[precision],
            "memory": self.memory_bytes / chip.memory,
            "L2": self.l2_bytes / chip.l2,
            "special functions": self.special / chip.special,
        }


def work(estimator: str, n: int, m: int, precision: Precision, family: str, nodes: int = 16) -> Work:
    """Work of N variables and M samples, the tiles above the diagonal counted whole."""
    config = configs(f"{estimator}_kernel", family, precision)[0]
    size = ITEMSIZE[precision]
    width = nodes if estimator == "grid" else 1
    n_tiles = _upper_tiles(n * width, config.block_m, config.block_n)
    area, edge = config.block_m * config.block_n, config.block_m + config.block_n
    # K of the product for one pair: samples, samples for each sample, or half as many
    inner = {"grid": m, "kde": m * m, "renyi2": m * m / 2}[estimator]
    operand = n * width * inner * size
    results = 4.0 * n * n
    if estimator == "grid":
        special = n_tiles * area  # a logarithm of each count
        memory = 4.0 * n * m + 2 * operand + results  # ranks in, features out and in again
    else:
        logs = n_tiles * area * m if estimator == "kde" else 0
        exponentials = n * inner * (2 if estimator == "kde" else 1)  # kde makes rows twice, to normalise them
        launches = inner / m / 16
        special = logs + exponentials
        memory = 2 * operand + results * launches  # half of the matrix is read and written by each launch
    return Work(2 * n_tiles * area * inner, memory, n_tiles * edge * inner * size, special)


def _upper_tiles(rows: int, block_m: int, block_n: int) -> int:
    """Tiles that are not wholly below the diagonal."""
    tiles_n = -(-rows // block_n)
    return sum(tiles_n - first // block_n for first in range(0, rows, block_m))


def floor(
    estimator: str, n: int, m: int, precision: Precision, chip: str, nodes: int = 16
) -> tuple[float, str]:
    """Least seconds on a chip, and what binds."""
    seconds = work(estimator, n, m, precision, CHIP[chip].family, nodes).seconds(CHIP[chip], precision)
    binding = max(seconds, key=seconds.__getitem__)
    return seconds[binding], binding


class Model(NamedTuple):
    """Shape of a language model with gated FFNs."""

    layers: int
    neurons: int  # of a layer's FFN
    width: int  # of the residual stream
    parameters: float


MODELS = {
    "Llama-2-7B": Model(32, 11008, 4096, 6.74e9),
    "Llama-3-70B": Model(80, 28672, 8192, 70.6e9),
    "Llama-3.1-405B": Model(126, 53248, 16384, 405.9e9),
}
RATIO = 0.2
"""Share of the neurons that goes."""

SAMPLES = 4096
"""Of them MI is measured."""

TOKENS_PER_NEURON = 4
"""Calibration tokens for each neuron that stays, as least squares wants them."""

DISK = 2e9
"""Bytes per second that a good solid-state disk writes."""


def stages(model: Model, chip: str) -> dict[str, float]:
    """Least seconds of each stage of pruning, by the names that a manifest gives them.

    As if the weights fitted on one chip: on several, all stages but the last shrink with their number.
    """
    n, d, rates = model.neurons, model.width, CHIP[chip]
    kept = round(n * (1 - RATIO))
    gone = n - kept
    tokens = TOKENS_PER_NEURON * kept
    forward = 2 * model.parameters * tokens / rates.matrix["fp16"]
    moments = 2.0 * n**2 * tokens  # float32, the whole square
    # The inverse of the moments, then a rank-one update of what is left for each neuron, in blocks.
    elimination = n**3 + 2 * n**3 / 3
    # How well the kept neurons predict those that go: Cholesky and the solution.
    explanation = kept**3 / 3 + 2.0 * kept**2 * gone
    # Moments of the kept neurons in the pruned stream, their product with what is missing, Cholesky, the solution.
    fit = 2.0 * kept * (kept + d) * tokens + kept**3 / 3 + 2.0 * kept**2 * d
    weights = model.parameters - model.layers * 3 * d * gone
    mi = floor("grid", n, SAMPLES, "int8", chip)[0]
    return {
        # the dense stream with its moments, and the pruned one
        "capture": 2 * forward + model.layers * moments / rates.algebra,
        "measure": model.layers * (mi + elimination / rates.algebra),
        "select": model.layers * explanation / rates.algebra,
        # and what is left of the FFN once more
        "repair": model.layers * (6.0 * d * kept * tokens / rates.matrix["fp16"] + fit / rates.algebra),
        "save": 2 * weights / DISK,  # 16-bit
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--N", type=int, default=11008)
    args = parser.parse_args()
    print(f"Predicted floors, N = {args.N}; ms, and what binds\n")
    print(f"{'estimator':10}{'M':>6} {'dtype':6}" + "".join(f"{name:>28}" for name in CHIP))
    for estimator, m in (("grid", 4096), ("kde", 1024), ("renyi2", 1024)):
        for precision in ITEMSIZE:
            if precision == "int8" and estimator != "grid":
                continue
            cells = []
            for name, chip in CHIP.items():
                if precision in CHIPS[chip.family]:
                    seconds, binding = floor(estimator, args.N, m, precision, name)
                    cells.append(f"{seconds * 1e3:.1f} ({binding})")
                else:
                    cells.append("-")
            print(f"{estimator:10}{m:>6} {precision:6}" + "".join(f"{cell:>28}" for cell in cells))
    print(
        f"\nPredicted floors of pruning {RATIO:.0%} of whole models: grid, 16 nodes, int8, M = {SAMPLES}; seconds\n"
    )
    for name in CHIP:
        for model, shape in MODELS.items():
            cells = [f"{stage} {seconds:.1f}" for stage, seconds in stages(shape, name).items()]
            print(f"{name:8}{model:16}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
