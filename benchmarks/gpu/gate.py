"""What compiled code shows about its speed: counts of the machine code, and the faults that they prove.

Read from the cubin by tools in Triton's wheel, or from AMD's assembly. Cycles are those of one multiprocessor whose
four schedulers issue one instruction per cycle each; on a GPU, more may be lost.
"""

import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

from mikernels.options import Precision
from mikernels.triton_impl.configs import Config
from mikernels.triton_impl.kde import MAX_BITS
from mikernels.triton_impl.renyi2 import ROWS

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory available to one block."""
REGISTERS = 65536
"""32-bit registers of a multiprocessor of NVIDIA."""

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

MACS = {
    "sm_80": {"int8": 2048, "fp16": 1024, "fp32": 512 / 3},
    "sm_90": {"int8": 4096, "fp8": 4096, "fp16": 2048, "fp32": 1024 / 3},
    "sm_100": {"int8": 8192 if MODERN else 2048, "fp8": 8192, "fp16": 4096, "fp32": 2048 / 3},
    "gfx942": {"int8": 2048, "fp16": 1024, "fp32": 128},
}
"""Products of two numbers per cycle and multiprocessor, from data sheets; float32 in three products of TF32.

For the old int8 instruction on Blackwell, of which no data sheet tells, that of Ampere.
"""

CYCLES_PER_INSTRUCTION = {"gfx942": 4}
"""A wave of 64 threads takes four cycles of a vector unit; other chips one."""

LOGARITHM = re.compile(r"\bMUFU\.LG2|\bv_log_f32")
WITH_LOGARITHMS = ("grid_kernel", "kde_kernel", "ladder_kernel")
CYCLES_PER_LOGARITHM = {"gfx942": 16}
"""The units for special functions serve a warp of 32 threads in 8 cycles, and on AMD a wave of 64 in 16."""
MAX_SHARE = {"sm_80": 0.1, "sm_90": 0.1, "sm_100": 0.15, "gfx942": 0.1}
"""Of the cycles of a product, what may follow it. On Blackwell the tensor cores are twice as fast as on Hopper, the
units for special functions are not: the logarithms of `grid` alone take an eighth of an 8-bit product. A polynomial for
a fifth of them would leave a tenth, since it takes about nine instructions."""
PROGRAMS = {
    ("grid_kernel", "sm_80", "int8"): 2,
    ("grid_kernel", "sm_80", "fp16"): 2,
    ("counts_kernel", "sm_80", "int8"): 2,
}
"""Programs on a multiprocessor where more than one is promised: what follows one's product hides behind the other's."""
REMARK = "Forcing a different order"
"""Of the compiler, if an operand has to be reordered in registers."""


class Case(NamedTuple):
    kernel: str
    chip: str
    precision: Precision
    config: Config | None  # None for a kernel that prepares operands
    block_nodes: int = 0  # S of `grid`; 0 for other kernels


def inspect(compiled: Any, case: Case) -> dict[str, Any]:
    """Registers, spills, shared memory, and counts of instructions of a compiled kernel."""
    found: dict[str, Any] = {"shared_bytes": compiled.metadata.shared}
    if case.chip.startswith("gfx"):
        assembly = compiled.asm["amdgcn"]
        for name in ("vgpr_count", "agpr_count", "vgpr_spill_count"):
            match = re.search(rf"\.{name}:\s*(\d+)", assembly)
            found[name] = int(match[1]) if match else None
        registers, spills = found.pop("vgpr_count"), found.pop("vgpr_spill_count")
        instructions = re.findall(r"\b(v_mfma_[a-z0-9]+)_", assembly)
        loads = len(re.findall(r"\bbuffer_load|\bglobal_load", assembly))
        programs = None  # occupancy is in waves, and the register file in two halves
    else:
        usage, assembly = _disassembled(compiled.asm["cubin"])
        match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if match is None:
            raise RuntimeError(f"cuobjdump: expected registers and stack, got {usage!r}")
        registers = int(match[1])
        spills = int(match[2]) + len(re.findall(r"\b(?:LDL|STL)\b", assembly))
        instructions = re.findall(r"\b([HIQ]GMMA|UTC[A-Z]MMA|[HIQ]MMA)\b", assembly)
        loads = len(re.findall(r"\b(?:UTMALDG|LDGSTS)\b", assembly))
        threads = 32 * compiled.metadata.num_warps
        programs = min(
            REGISTERS // (-(-registers // 8) * 8 * threads),
            SHARED_LIMIT[case.chip] // (found["shared_bytes"] + 1024),
        )
    after = instructions_after_product(assembly)
    return found | {
        "registers": registers,
        "spills": spills,
        "matrix_instructions": {name: instructions.count(name) for name in sorted(set(instructions))},
        "asynchronous_loads": loads,
        "logarithms": len(LOGARITHM.findall(assembly)),
        "instructions_per_round": after.per_round,
        "instructions_in_branch": after.in_branch,
        "instructions_after_loop": after.after_loop,
        "draining_waits_in_loop": draining_waits(compiled.asm["ttgir"]),
        "programs_per_multiprocessor": programs,
    }


def _disassembled(cubin: bytes) -> list[str]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return [
            subprocess.run([*words, file.name], capture_output=True, text=True, check=True).stdout
            for words in ([tools / "cuobjdump", "-res-usage"], [tools / "nvdisasm", "-c", "-ndf"])
        ]


class After(NamedTuple):
    """Instructions that follow the last matrix instruction of the loop."""

    per_round: int  # to the end of the loop, always
    in_branch: int  # and in what a branch can skip: in `kde`, after the last block of a sample
    after_loop: int


def instructions_after_product(assembly: str) -> After:
    lines = [line.split("//")[0].split(";")[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.startswith(".L") and line.endswith(":")}
    is_code = [bool(re.match(r"/\*[0-9a-f]{4,}\*/|[sv]_|ds_|buffer_|global_", line)) for line in lines]
    products = [i for i, line in enumerate(lines) if re.search(r"MMA[. ]|\bv_mfma_", line) and is_code[i]]
    if not products:
        return After(0, 0, 0)
    last = products[-1]
    branches = [(i, labels[name]) for i in range(last, len(lines)) if (name := _target(lines[i])) in labels]
    loop_end = next((i for i, target in branches if target <= last), last)
    end = next(
        (i for i in range(loop_end, len(lines)) if re.search(r"\bEXIT\b|s_endpgm", lines[i])), len(lines)
    )
    skipped = {k for i, target in branches if i < target <= loop_end for k in range(i + 1, target)}
    in_loop = [k for k in range(last + 1, loop_end + 1) if is_code[k]]
    in_branch = len(skipped.intersection(in_loop))
    return After(len(in_loop) - in_branch, in_branch, sum(is_code[loop_end + 1 : end + 1]))


def _target(line: str) -> str | None:
    match = re.search(r"(?:BRA|s_cbranch_\w+|s_branch)\b.*?(\.L\w+)", line)
    return match[1] if match else None


def draining_waits(ttgir: str) -> int:
    """Waits for all of Hopper's asynchronous products in every round of a loop."""
    blocks: list[str] = []
    count = 0
    for line in ttgir.splitlines():
        if line.strip().startswith("}"):
            blocks.pop()
        if re.search(r"warp_group_dot_wait.*pendings = 0", line) and blocks and blocks[-1] == "scf.for":
            count += 1
        if line.rstrip().endswith("{"):
            kind = re.search(r"scf\.(?:for|if|while)", line)
            blocks.append(kind[0] if kind else "")
    return count


def share_after_product(found: dict[str, Any], case: Case) -> float:
    """Cycles of what follows a product, as a share of the product's: M = 4096 for `grid`, 1024 for others.

    Without what follows each round of the loop: `cycles_after_product` has it.
    """
    assert case.config is not None  # noqa: S101
    samples = int(MAX_BITS / math.log2(1024)) if case.kernel == "kde_kernel" else 1
    inner = {"kde_kernel": 1024 * samples, "renyi2_kernel": 1024 * ROWS}.get(case.kernel, 4096)
    c = case.config
    product = c.block_m * c.block_n * inner / MACS[case.chip][case.precision]
    return cycles_after_product(found, case, samples) / product


def cycles_after_product(found: dict[str, Any], case: Case, samples: float, rounds: float = 0) -> float:
    """Cycles of one program: the longer of issuing instructions and taking logarithms."""
    assert case.config is not None  # noqa: S101
    issued = found["instructions_after_loop"] + samples * found["instructions_in_branch"]
    if found["draining_waits_in_loop"]:  # otherwise the next product is under way
        issued += rounds * found["instructions_per_round"]
    cycles = max(
        issued * CYCLES_PER_INSTRUCTION.get(case.chip, 1),
        found["logarithms"] * CYCLES_PER_LOGARITHM.get(case.chip, 8),
    )
    return cycles * case.config.warps / 4


def faults(found: dict[str, Any], case: Case, said: str = "") -> list[str]:
    """Reasons why a kernel falls short of the speed of the chip; `said` by the compiler."""
    problems = [f"{found['spills']} spills"] if found["spills"] else []
    if found["shared_bytes"] > SHARED_LIMIT[case.chip]:
        problems.append(f"more than {SHARED_LIMIT[case.chip]} bytes of shared memory")
    if REMARK in said:
        problems.append(f"the compiler says {REMARK!r}")
    if case.kernel in WITH_LOGARITHMS and not found["logarithms"]:
        problems.append("logarithms are a software routine")
    if case.config is None:
        return problems
    expected = INSTRUCTION[case.chip][case.precision]
    if not any(name.startswith(expected) for name in found["matrix_instructions"]):
        problems.append(f"no {expected}")
    programs, promised = (
        found["programs_per_multiprocessor"],
        PROGRAMS.get((case.kernel, case.chip, case.precision), 1),
    )
    if programs is not None and programs < promised:
        problems.append(f"fewer than {promised} programs on a multiprocessor")
    if case.kernel == "ladder_kernel":  # one table: no loop, nothing to load ahead
        return problems
    if not found["asynchronous_loads"]:
        problems.append("no asynchronous loads")
    # Triton makes products asynchronous only where sums are float32, and splits float32 operands in registers.
    if found["draining_waits_in_loop"] and case.precision in ("fp16", "fp8"):
        problems.append("the loop waits for every product")
    share = share_after_product(found, case)
    if share > MAX_SHARE[case.chip]:
        problems.append(f"{share:.0%} of the product's cycles follow it")
    return problems
