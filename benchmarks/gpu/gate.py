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
    "sm_100": {"int8": 8192, "fp8": 8192, "fp16": 4096, "fp32": 2048 / 3},
    "gfx942": {"int8": 2048, "fp16": 1024, "fp32": 128},
}
"""Products of two numbers per cycle and multiprocessor, from data sheets; float32 in three products of TF32."""

CYCLES_PER_INSTRUCTION = {"gfx942": 4}
"""A wave of 64 threads takes four cycles of a vector unit; other chips one."""

LOGARITHM = re.compile(r"\bMUFU\.LG2|\bv_log_f32")
WITH_LOGARITHMS = ("grid_kernel", "kde_kernel", "ladder_kernel")
MAX_SHARE = 0.2
"""Of the cycles of a product, what may follow it."""
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
    in_loop, after_loop = instructions_after_product(assembly)
    return found | {
        "registers": registers,
        "spills": spills,
        "matrix_instructions": {name: instructions.count(name) for name in sorted(set(instructions))},
        "asynchronous_loads": loads,
        "logarithms": len(LOGARITHM.findall(assembly)),
        "instructions_in_loop_after_product": in_loop,
        "instructions_after_loop": after_loop,
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


def instructions_after_product(assembly: str) -> tuple[int, int]:
    """Instructions from the last matrix instruction to the end of its loop, and from there to the end."""
    lines = [line.split("//")[0].split(";")[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.startswith(".L") and line.endswith(":")}
    is_code = [bool(re.match(r"/\*[0-9a-f]{4,}\*/|[sv]_|ds_|buffer_|global_", line)) for line in lines]
    products = [i for i, line in enumerate(lines) if re.search(r"MMA[. ]|\bv_mfma_", line) and is_code[i]]
    if not products:
        return 0, 0
    last = loop_end = products[-1]
    for i in range(last, len(lines)):
        target = re.search(r"(?:BRA|s_cbranch_\w+|s_branch)\b.*?(\.L\w+)", lines[i])
        if target and labels.get(target[1], len(lines)) <= last:
            loop_end = i
            break
    end = next(
        (i for i in range(loop_end, len(lines)) if re.search(r"\bEXIT\b|s_endpgm", lines[i])), len(lines)
    )
    return sum(is_code[last + 1 : loop_end + 1]), sum(is_code[loop_end + 1 : end + 1])


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
    """Cycles of what is not the product, as a share of the product's: M = 4096 for `grid`, 1024 for others."""
    assert case.config is not None  # noqa: S101
    samples = int(MAX_BITS / math.log2(1024)) if case.kernel == "kde_kernel" else 1
    inner = {"grid_kernel": 4096, "counts_kernel": 4096, "kde_kernel": samples * 1024}.get(
        case.kernel, 16 * 1024
    )
    c = case.config
    product = c.block_m * c.block_n * inner / MACS[case.chip][case.precision]
    issued = found["instructions_after_loop"] + samples * found["instructions_in_loop_after_product"]
    return issued * c.warps / 4 * CYCLES_PER_INSTRUCTION.get(case.chip, 1) / product


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
    if share > MAX_SHARE:
        problems.append(f"{share:.0%} of the product's cycles follow it")
    return problems
