"""Compile every kernel in every shipped configuration for chips that need not be present.

    python -m benchmarks.gpu.compile [--chips sm_90 ...] [--no-record]

Prints registers, spills, shared memory and tensor-core instructions, read from the cubin (by tools in Triton's
wheel) or from AMD's assembly, and appends them to `results/compile.jsonl`. A spill, a missing tensor-core
instruction or too much shared memory gives exit status 1.
"""

import itertools
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory available to one block."""

MODERN = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
"""Triton 3.6 does not emit the int8 instruction of Blackwell."""

INSTRUCTION = {
    "sm_80": {"int8": "IMMA", "fp16": "HMMA", "fp32": "HMMA"},
    "sm_90": {"int8": "IGMMA", "fp8": "QGMMA", "fp16": "HGMMA", "fp32": "HGMMA"},
    "sm_100": {
        "int8": "UTCIMMA" if MODERN else "IMMA",
        "fp8": "UTCQMMA",
        "fp16": "UTCHMMA",
        "fp32": "UTCHMMA",
    },
    "gfx942": {"int8": "v_mfma_i32", "fp16": "v_mfma_f32", "fp32": "v_mfma_f32"},
}
"""Matrix instruction that must appear, by chip and precision."""

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

FORMAT = "{:8}{:24}{:6}{:>4} {:16}{:>6}{:>7}{:>10}{:>7}{:>8} "  # of a printed line


class Case(NamedTuple):
    kernel: str
    chip: str
    precision: Precision
    config: Config | None  # None for a kernel that prepares operands
    block_nodes: int = 0  # S of `grid`; 0 for other kernels


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


def inspect(compiled: Any, case: Case) -> dict[str, Any]:
    """Registers, spills, shared memory and matrix instructions of a compiled kernel."""
    found: dict[str, Any] = {"shared_bytes": compiled.metadata.shared}
    if case.chip.startswith("gfx"):
        assembly = compiled.asm["amdgcn"]
        for name in ("vgpr_count", "agpr_count", "vgpr_spill_count"):
            match = re.search(rf"\.{name}:\s*(\d+)", assembly)
            found[name] = int(match[1]) if match else None
        registers, spills = found.pop("vgpr_count"), found.pop("vgpr_spill_count")
        instructions = re.findall(r"\b(v_mfma_[a-z0-9]+)_", assembly)
        loads = len(re.findall(r"\bbuffer_load|\bglobal_load", assembly))
    else:
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage, assembly = (
                subprocess.run([*words, file.name], capture_output=True, text=True, check=True).stdout
                for words in ([tools / "cuobjdump", "-res-usage"], [tools / "nvdisasm", "-c", "-ndf"])
            )
        match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if match is None:
            raise RuntimeError(f"cuobjdump: expected registers and stack, got {usage!r}")
        registers = int(match[1])
        spills = int(match[2]) + len(re.findall(r"\b(?:LDL|STL)\b", assembly))
        instructions = re.findall(r"\b([HIQ]GMMA|UTC[A-Z]MMA|[HIQ]MMA)\b", assembly)
        loads = len(re.findall(r"\b(?:UTMALDG|LDGSTS)\b", assembly))
    counts = {name: instructions.count(name) for name in sorted(set(instructions))}
    return found | {
        "registers": registers,
        "spills": spills,
        "matrix_instructions": counts,
        "asynchronous_loads": loads,
    }


def faults(found: dict[str, Any], case: Case) -> list[str]:
    """Reasons why a kernel falls short of the speed of the chip."""
    problems = [f"{found['spills']} spills"] if found["spills"] else []
    if found["shared_bytes"] > SHARED_LIMIT[case.chip]:
        problems.append(f"more than {SHARED_LIMIT[case.chip]} bytes of shared memory")
    if case.config is not None:
        expected = INSTRUCTION[case.chip][case.precision]
        if not any(name.startswith(expected) for name in found["matrix_instructions"]):
            problems.append(f"no {expected}")
        # The ladder loads a single table.
        if not found["asynchronous_loads"] and case.kernel != "ladder_kernel":
            problems.append("no asynchronous loads")
    return problems


def main() -> int:
    parser = argument_parser("benchmarks.gpu.compile", __doc__)
    parser.add_argument("--chips", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--defaults-only", action="store_true", help="leave out what only autotuning tries")
    args = parser.parse_args()
    rerun = command("benchmarks.gpu.compile", chips=args.chips)
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
    )
    print(FORMAT.format(*head), "matrix instructions")
    for case in cases(args.chips, defaults_only=args.defaults_only):
        found = inspect(compile_case(case), case)
        problems = faults(found, case)
        failed += bool(problems)
        c = case.config
        tile = f"{c.block_m} x {c.block_n} x {c.bytes_k}" if c else "-"
        cells = case.chip, case.kernel, case.precision, case.block_nodes, tile, c.warps if c else 4
        cells += c.stages if c else "-", found["registers"], found["spills"], found["shared_bytes"]
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
