"""Predicted times of an MI matrix, and of pruning a model: a floor and what to expect.

    python -m benchmarks.gpu.cost [--N 11008]

Counted, not measured, for the kernels in `mikernels.triton_impl` with their shipped tiles; `benchmarks.gpu` reports
measured times beside both.

- The floor is the largest time that the data sheet's rates leave: tensor-core operations, bytes from device memory,
  special functions (exponentials and logarithms).
- What to expect charges the compiled code as well: the instructions that follow a product, from the last rows of
  `results/compile.jsonl`, which nothing hides unless two programs share a multiprocessor; and bytes from L2. On an H200
  whole calls take 1.3 to 2.1 times as long (`results/gpu.md`).

The floors of the other stages of pruning are their matrix products at the rate of the chip, and writing the weights to
disk.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.gpu.gate import Case, cycles_after_product
from benchmarks.record import RESULTS, argument_parser
from mikernels.options import Precision
from mikernels.triton_impl.configs import CHIPS, ITEMSIZE, configs
from mikernels.triton_impl.renyi2 import ROWS


@dataclass(frozen=True)
class Chip:
    """Peak rates of a chip, per second, from its data sheet.

    Float32 operands of `matrix` take three products in TF32 (AMD: the float32 matrix rate). `l2` of Hopper is what
    `grid` in int8 has read on an H200 (10.7 TB/s), which may be less than the limit; of others, what published
    microbenchmarks have, accurate to about 20 %. `algebra` is the peak of float32 without TF32 and of float64 on the
    tensor cores, which are the same on each of these chips.
    """

    family: str  # key of `mikernels.triton_impl.configs`
    matrix: dict[str, float]  # dense tensor-core operations, by operand
    memory: float  # bytes from device memory
    l2: float  # bytes from L2 to the multiprocessors
    special: float  # exponentials or logarithms, 16 per clock and multiprocessor at the boost clock
    algebra: float  # operations of products and factorizations in the vendor's libraries


HOPPER = {"fp16": 989e12, "int8": 1979e12, "fp8": 1979e12, "fp32": 495e12 / 3}
CHIP = {
    "H100": Chip("sm_90", HOPPER, 3.35e12, 10.7e12, 16 * 132 * 1.755e9, 67e12),
    "H200": Chip("sm_90", HOPPER, 4.8e12, 10.7e12, 16 * 132 * 1.755e9, 67e12),
    "A100": Chip(
        "sm_80", {"fp16": 312e12, "int8": 624e12, "fp32": 156e12 / 3}, 2.04e12, 4.0e12, 16 * 108 * 1.41e9, 19.5e12
    ),
    "MI300X": Chip(
        "gfx942", {"fp16": 1307e12, "int8": 2615e12, "fp32": 163e12}, 5.3e12, 10e12, 16 * 304 * 2.1e9, 163e12
    ),
}  # fmt: skip


KDE_SAMPLES = 12
"""Samples that `kde` multiplies before a logarithm and in one launch, at M = 1024."""


class Work(NamedTuple):
    """Work for one symmetric matrix."""

    matrix_ops: float
    memory_bytes: float
    l2_bytes: float
    special: float

    def seconds(self, chip: Chip, precision: Precision) -> dict[str, float]:
        """The time that each resource alone would need."""
        return {
            "tensor cores": self.matrix_ops / chip.matrix[precision],
            "memory": self.memory_bytes / chip.memory,
            "L2": self.l2_bytes / chip.l2,
            "special functions": self.special / chip.special,
        }


def work(estimator: str, n: int, m: int, precision: Precision, family: str, nodes: int = 16) -> Work:
    """Work for N variables and M samples; tiles that touch the upper triangle count in full."""
    config = configs(f"{estimator}_kernel", family, precision)[0]
    size = ITEMSIZE[precision]
    width = nodes if estimator == "grid" else 1
    n_tiles = _upper_tiles(n * width, config.block_m, config.block_n)
    area, edge = config.block_m * config.block_n, config.block_m + config.block_n
    # K of the product: M for `grid`, M^2 for `kde`, M^2 / 2 for `renyi2`
    inner = {"grid": m, "kde": m * m, "renyi2": m * m / 2}[estimator]
    operand = n * width * inner * size
    results = 4.0 * n * n
    if estimator == "grid":
        special = n_tiles * area  # one logarithm per count
        memory = 4.0 * n * m + 2 * operand + results  # reads ranks, writes features and reads them back
    else:
        logs = n_tiles * area * m / KDE_SAMPLES if estimator == "kde" else 0
        exponentials = (
            n * inner * (2 if estimator == "kde" else 1)
        )  # kde computes rows twice, to normalize them
        launches = m / KDE_SAMPLES if estimator == "kde" else inner / m / ROWS
        special = logs + exponentials
        memory = 2 * operand + results * launches  # each launch reads and writes half of the matrix
    return Work(2 * n_tiles * area * inner, memory, n_tiles * edge * inner * size, special)


def _upper_tiles(rows: int, block_m: int, block_n: int) -> int:
    """Number of tiles that are not entirely below the diagonal."""
    tiles_n = -(-rows // block_n)
    return sum(tiles_n - first // block_n for first in range(0, rows, block_m))


def floor(
    estimator: str, n: int, m: int, precision: Precision, chip: str, nodes: int = 16
) -> tuple[float, str]:
    """Minimum seconds on a chip, and the resource that limits it."""
    seconds = work(estimator, n, m, precision, CHIP[chip].family, nodes).seconds(CHIP[chip], precision)
    del seconds["L2"]  # no data sheet states its rate
    binding = max(seconds, key=seconds.__getitem__)
    return seconds[binding], binding


def expected(
    estimator: str, n: int, m: int, precision: Precision, chip: str, nodes: int = 16
) -> tuple[float, str]:
    """Seconds to expect of the compiled code on a chip, and what limits it."""
    rates = CHIP[chip]
    kernel, family = f"{estimator}_kernel", rates.family
    counted = work(estimator, n, m, precision, family, nodes)
    config = configs(kernel, family, precision)[0]
    tiles = _upper_tiles(n * nodes if estimator == "grid" else n, config.block_m, config.block_n)
    # `kde` and `renyi2` add tiles to memory once per launch, and `kde` multiplies once per sample
    samples, inner, launches = {
        "grid": (1, m, 1),
        "kde": (KDE_SAMPLES, m * KDE_SAMPLES, m / KDE_SAMPLES),
        "renyi2": (1, m * ROWS, m / 2 / ROWS),
    }[estimator]
    rounds = inner * ITEMSIZE[precision] / config.bytes_k
    code = compiled(kernel, family, precision)
    cycles = launches * cycles_after_product(code, Case(kernel, family, precision, config), samples, rounds)
    seconds = counted.seconds(rates, precision)
    after = tiles * cycles / (rates.special / 16)  # 16 special functions per cycle and multiprocessor
    product = seconds.pop("tensor cores")
    hidden = (code["programs_per_multiprocessor"] or 1) > 1
    seconds["product and what follows"] = max(product, after) if hidden else product + after
    binding = max(seconds, key=seconds.__getitem__)
    return seconds[binding], binding


def compiled(kernel: str, family: str, precision: Precision) -> dict[str, Any]:
    """Counts of the default configuration, from the last row that has them."""
    config = configs(kernel, family, precision)[0]._asdict()
    wanted = {"kernel": kernel, "chip": family, "precision": precision, "config": config}
    with (RESULTS / "compile.jsonl").open() as file:
        found = [json.loads(line) for line in file]
    return next(
        r["result"]
        for r in reversed(found)
        if wanted.items() <= r["case"].items()
        and r["case"]["block_nodes"] in (0, 16)
        and "instructions_per_round" in r["result"]
    )


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
RATIO = 0.2  # share of neurons that is dropped
SAMPLES = 4096  # M of the MI estimate
TOKENS_PER_NEURON = 4  # calibration tokens per kept neuron, as least squares requires
DISK = 2e9  # bytes per second written by a good solid-state disk


def stages(model: Model, chip: str) -> dict[str, float]:
    """Minimum seconds of each stage of pruning, under the names used in the manifest.

    Assumes that the weights fit on one chip; with several chips, all stages but the last shrink with their number.
    """
    n, d, rates = model.neurons, model.width, CHIP[chip]
    kept = round(n * (1 - RATIO))
    dropped = n - kept
    tokens = TOKENS_PER_NEURON * kept
    forward = 2 * model.parameters * tokens / rates.matrix["fp16"]
    moments = 3 * n**2 * tokens  # three 16-bit products of half of a symmetric matrix
    # Invert the moments, then apply a rank-one update of the remainder for each neuron, in blocks.
    elimination = n**3 + 2 * n**3 / 3
    # Predict the dropped neurons from the kept ones: Cholesky factor and solution.
    explanation = kept**3 / 3 + 2.0 * kept**2 * dropped
    # Of all neurons in the pruned stream, where it is not known yet which are kept, and of their product with the
    # residual.
    targets = moments + 6.0 * n * d * tokens
    # Cholesky factor, solution.
    fit = kept**3 / 3 + 2.0 * kept**2 * d
    weights = model.parameters - model.layers * 3 * d * dropped
    mi = floor("grid", n, SAMPLES, "int8", chip)[0]
    return {
        # dense and pruned stream, and the moments of both
        "capture": 2 * forward + model.layers * (moments + targets) / rates.matrix["fp16"],
        "measure": model.layers * (mi + elimination / rates.algebra),
        "select": model.layers * explanation / rates.algebra,
        # and another pass through the pruned FFN
        "repair": model.layers * (6.0 * d * kept * tokens / rates.matrix["fp16"] + fit / rates.algebra),
        "save": 2 * weights / DISK,  # 16-bit
    }


def main() -> None:
    parser = argument_parser("benchmarks.gpu.cost", __doc__)
    parser.add_argument("--N", type=int, default=11008)
    args = parser.parse_args()
    from benchmarks.tables import table  # tabulate is not needed on the GPU machine

    for title, predict in (("Predicted floors", floor), ("Expected times", expected)):
        print(f"{title} in ms, with what limits them; N = {args.N}; not measured\n")
        lines = []
        for estimator, m in (("grid", 4096), ("kde", 1024), ("renyi2", 1024)):
            for precision in ITEMSIZE:
                if precision == "int8" and estimator != "grid":
                    continue
                found = {
                    name: predict(estimator, args.N, m, precision, name)
                    for name, chip in CHIP.items()
                    if precision in CHIPS[chip.family]
                }
                cells = [f"{found[c][0] * 1e3:.1f} ({found[c][1]})" if c in found else "-" for c in CHIP]
                lines.append([estimator, str(m), precision, *cells])
        print(table(["estimator", "M", "dtype", *CHIP], lines), end="\n\n")
    print(
        f"\nPredicted floors in seconds of pruning {RATIO:.0%} of the neurons: grid, 16 nodes, int8, M = {SAMPLES}\n"
    )
    by_stage = {(chip, model): stages(MODELS[model], chip) for chip in CHIP for model in MODELS}
    lines = [[*key, *(f"{seconds:.1f}" for seconds in found.values())] for key, found in by_stage.items()]
    print(table(["chip", "model", *stages(MODELS["Llama-2-7B"], "H100")], lines))


if __name__ == "__main__":
    main()
