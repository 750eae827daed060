"""Base-2 logarithms by the instruction of the chip.

`tl.log2` is a routine of about 30 instructions on NVIDIA, because it is exact to an ulp and takes subnormal numbers.
The instruction alone is off by at most 2^-22 for x in (1/2, 2) and by 2^-22.6 of the logarithm elsewhere (PTX ISA,
`lg2.approx.ftz.f32`); AMD's `v_log_f32` is exact to an ulp. Both take subnormal numbers as 0, so callers keep
x at or above 2^-126.
"""

import triton
import triton.language as tl
from triton.language import core

INTRINSIC = {"gfx942": "llvm.amdgcn.log.f32"}
"""Of LLVM, which knows the hazards of the instruction, unlike inline assembly; every other chip is NVIDIA's."""


@triton.jit
def log2(x, CHIP: tl.constexpr):
    """`log2(x)` of normal float32 numbers; the interpreter computes it exactly."""
    return tl.log2(x) if CHIP == "interpreter" else _instruction(x, CHIP)


@core.extern
def _instruction(x, chip, _semantic=None):
    name = INTRINSIC.get(core._unwrap_if_constexpr(chip), "llvm.nvvm.lg2.approx.ftz.f")
    number = core.dtype("fp32")
    return core.extern_elementwise(
        "", "", [x], {(number,): (name, number)}, is_pure=True, _semantic=_semantic
    )
