"""Compile every kernel in every shipped configuration for chips that need not be present.

    python -m benchmarks.gpu.compile [--chips sm_90 ...] [--no-record]
    python -m benchmarks.gpu.compile --chips sm_90 --kernel grid_kernel --precision int8 --config 128 128 128 8 3

Prints registers, spills, shared memory, tensor-core instructions and the share of a product's cycles that follows it,
and appends them to `results/compile.jsonl`. A fault (`benchmarks.gpu.gate`) gives exit status 1. With `--config` it
compiles a configuration that is not shipped, to weigh it against those that are.
"""

import itertools
import math
import os
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.gate import Case, faults, inspect, share_after_product
from benchmarks.record import RESULTS, append, argument_parser, command, row
from mikernels.options import Precision
from mikernels.tables.rungs import COARSEST
from mikernels.triton_impl.adaptive_kernels import (
    LADDER_COLUMNS,
    LADDER_WARPS,
    SMALLEST_PRODUCT,
    TABLE_CELLS,
    counts_kernel,
    dot_precision,
    ladder_kernel,
)
from mikernels.triton_impl.configs import CHIPS, Config, configs, constants, has_descriptors
from mikernels.triton_impl.gather import gather_kernel
from mikernels.triton_impl.grid import grid_kernel, shares_kernel
from mikernels.triton_impl.kde import kde_kernel, kernel_rows_kernel
from mikernels.triton_impl.renyi2 import renyi2_kernel, squared_kernels_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

ELEMENT: dict[Precision, str] = {"int8": "i8", "fp8": "fp8e4nv", "fp16": "fp16", "fp32": "fp32"}

TILE_KERNELS: dict[str, tuple[Any, tuple[Precision, ...]]] = {
    "grid_kernel": (grid_kernel, ("int8", "fp8", "fp16", "fp32")),
    "kde_kernel": (kde_kernel, ("fp8", "fp16", "fp32")),
    "renyi2_kernel": (renyi2_kernel, ("fp8", "fp16", "fp32")),
    "counts_kernel": (counts_kernel, ("int8",)),
    "ladder_kernel": (ladder_kernel, ("fp32",)),
}
"""Kernels that compute products on tensor cores, and their precisions."""

LADDER_CONFIG = Config(TABLE_CELLS, TABLE_CELLS, 4 * TABLE_CELLS, LADDER_WARPS, 3)
"""One table; the number of stages is the default of Triton and has no effect without a loop."""

OPERAND_KERNELS: dict[str, tuple[Any, dict[str, int], tuple[Precision, ...]]] = {
    "gather_kernel": (gather_kernel, {"W": 16, "BT": 256}, ("int8", "fp8", "fp16", "fp32")),
    "shares_kernel": (shares_kernel, {"W": 16, "BT": 256}, ("fp16", "fp32")),
    "kernel_rows_kernel": (kernel_rows_kernel, {"BI": 16, "BJ": 256}, ("fp8", "fp16", "fp32")),
    "squared_kernels_kernel": (squared_kernels_kernel, {"BI": 16, "BJ": 256}, ("fp8", "fp16", "fp32")),
}
"""Kernels that prepare operands, with their constants and the precisions that use them."""

FLOATS = {"scale", "span", "spacing", "factor"}
FLOAT_POINTERS = {"p_score", "p_sum", "p_out", "p_kernel", "p_scale"}
INTEGER_POINTERS = {"p_rank", "p_counts"}
"""Types of arguments; all others are int32, or pointers to operand elements."""

FORMAT = "{:8}{:24}{:6}{:>4} {:16}{:>6}{:>7}{:>10}{:>7}{:>8}{:>7} "  # of a printed line


def cases(chips: list[str], *, defaults_only: bool = False) -> list[Case]:
    """Every shipped configuration: `grid` with 16 nodes, its default configuration with 64 nodes too.

    Args:
        defaults_only: leave out what only `autotune=True` tries, and the 64 nodes.
    """
    found = []
    for chip, kernel, precision in itertools.product(chips, TILE_KERNELS, ELEMENT):
        if precision not in CHIPS[chip] or precision not in TILE_KERNELS[kernel][1]:
            continue
        shipped = [LADDER_CONFIG] if kernel == "ladder_kernel" else configs(kernel, chip, precision)
        for rank, config in enumerate(shipped):
            if defaults_only and rank > 0:
                break
            nodes = (0,) if kernel != "grid_kernel" else (16,) if rank or defaults_only else (16, 64)
            found += [Case(kernel, chip, precision, config, n) for n in nodes]
    for chip, (kernel, (_, _, precisions)) in itertools.product(chips, OPERAND_KERNELS.items()):
        found += [Case(kernel, chip, p, None) for p in precisions if p in CHIPS[chip]]
    return found


def compile_case(case: Case) -> Any:
    """The compiled kernel, with the options and types that `Launcher` uses on the chip."""
    element = ELEMENT[case.precision]
    described: dict[str, tuple[str, int, int]] = {}
    options: dict[str, Any] = {"enable_fp_fusion": True}
    if case.config is None:
        kernel, values, _ = OPERAND_KERNELS[case.kernel]
        options["num_warps"] = 4  # Triton's default
    else:
        kernel, _ = TILE_KERNELS[case.kernel]
        values = constants(case.config, case.chip, case.precision) | {"UPPER": True, "CHIP": case.chip}
        if nodes := case.block_nodes:
            values |= {"S": nodes, "W": nodes, "INTEGERS": case.precision == "int8"}
        m, n, k = values["BM"], values["BN"], values["BK"]
        if case.kernel == "ladder_kernel":
            values = {
                "UPPER": True,
                "G": TABLE_CELLS,
                "HALVINGS": int(math.log2(TABLE_CELLS // COARSEST)),
                "BC": LADDER_COLUMNS.get(case.chip, TABLE_CELLS),
                "SMALLEST": SMALLEST_PRODUCT,
                "DOT_PRECISION": dot_precision(case.chip),
                "CHIP": case.chip,
            }
        described = {"a": (element, m, k), "b": (element, n, k), "out": ("fp32", m, n // 2)}
        values = {name: value for name, value in values.items() if name in kernel.arg_names}
        options |= {"num_warps": case.config.warps, "num_stages": case.config.stages}
    signature, divisible = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in values:
            signature[name] = "constexpr"
        elif name in described and has_descriptors(case.chip):
            signature[name] = "tensordesc<{}[{}, {}]>".format(*described[name])
        elif name in described:
            signature[name] = "*" + described[name][0]
        elif name.startswith("p_"):
            integers = name in INTEGER_POINTERS or (name, case.kernel) == ("p_out", "counts_kernel")
            signature[name] = "*i32" if integers else "*fp32" if name in FLOAT_POINTERS else "*" + element
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if signature[name].startswith("*") or name in ("n_inner", "stride", "stride_out"):
            divisible[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=divisible)
    return triton.compile(source, target=TARGETS[case.chip], options=options)


def compile_and_listen(case: Case) -> tuple[Any, str]:
    """The compiled kernel, and what the compiler wrote to stderr, which Python does not see otherwise."""
    triton.knobs.compilation.always_compile = True  # the cache keeps no remarks
    with tempfile.TemporaryFile("w+") as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            compiled = compile_case(case)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        return compiled, file.read()


def main() -> int:
    parser = argument_parser("benchmarks.gpu.compile", __doc__)
    parser.add_argument("--chips", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--defaults-only", action="store_true", help="leave out what only autotuning tries")
    parser.add_argument("--kernel", choices=TILE_KERNELS, help="compile only this one")
    parser.add_argument("--precision", choices=ELEMENT, default="int8", help="of that kernel's operands")
    parser.add_argument(
        "--config",
        nargs=5,
        type=int,
        metavar=("M", "N", "BYTES_K", "WARPS", "STAGES"),
        help="of that kernel, in place of its default",
    )
    args = parser.parse_args()
    if args.config and not args.kernel:
        parser.error("--config: expected together with --kernel, got it alone")
    options = {name: value for name, value in vars(args).items() if name != "no_record"}
    if args.kernel is None:
        del options["precision"]
    chosen = cases(args.chips, defaults_only=args.defaults_only or args.kernel is not None)
    if args.kernel:
        chosen = [case for case in chosen if (case.kernel, case.precision) == (args.kernel, args.precision)]
    if args.config:
        chosen = [case._replace(config=Config(*args.config)) for case in chosen]
    rerun = command("benchmarks.gpu.compile", **options)
    versions = {"triton": triton.__version__}
    rows, failed = [], 0
    print(f"triton {triton.__version__}")
    head = (
        "chip",
        "kernel",
        "dtype",
        "S",
        "M x N x K bytes",
        "warps",
        "stages",
        "registers",
        "spills",
        "shared",
        "after",
    )
    print(FORMAT.format(*head), "matrix instructions")
    for case in chosen:
        compiled, said = compile_and_listen(case)
        found = inspect(compiled, case)
        if case.config and case.kernel != "ladder_kernel":
            found["share_after_product"] = round(share_after_product(found, case), 4)
        problems = faults(found, case, said)
        failed += bool(problems)
        c = case.config
        tile = f"{c.block_m} x {c.block_n} x {c.bytes_k}" if c else "-"
        cells = case.chip, case.kernel, case.precision, case.block_nodes, tile, c.warps if c else 4
        cells += c.stages if c else "-", found["registers"], found["spills"], found["shared_bytes"]
        after = found.get("share_after_product")
        cells += ("-" if after is None else f"{after:.1%}",)
        print(FORMAT.format(*cells), found["matrix_instructions"], "; ".join(problems), flush=True)
        if args.no_record:
            continue
        described = case._asdict() | {"config": c._asdict() if c else None}
        rows.append(row("compile", rerun, described, found | {"faults": problems}, versions))
    if rows:
        append(rows, RESULTS / "compile.jsonl")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
