"""Exact matrix products of 8-bit integers from 0 to 127.

x86 multiplies bytes by `torch._int_mm` if it has VNNI. Without it, two products are added in 16 bits, which 2 x 127^2
fits, but not what `torch._int_mm` adds to turn signed bytes into unsigned ones: there the operators behind quantized
linear layers take unsigned by signed bytes, in half the time of float32 (measured). Elsewhere bytes are converted to
float32.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

EXACT = 2**24
"""Below this, float32 holds every integer."""
BLOCK = 1024
"""Samples to multiply at a time in float32 if nothing more is known of the sums: 127^2 x 1024 is below `EXACT`."""


def byte_gram(a: Tensor, b: Tensor, *, small: bool = False) -> Tensor:
    """`a b^T` of int8 `a [..., M]` and `b [..., M]`: int32 `[n, k]`, leading dimensions flattened.

    Exact if all entries are from 0 to 127 and the sums fit. `small` says that all sums are below `EXACT`, and saves
    time where products are in float32.
    """
    a, b = a.flatten(0, -2), b.flatten(0, -2)
    on_cpu = a.device.type == "cpu"
    if on_cpu and has_integer_products():
        return _integer_product(a, b)
    with torch.autocast(a.device.type, enabled=False):
        multiply = _byte_product if on_cpu and has_byte_products() else _float_product
        if small:
            return multiply(a, b).int()
        blocks = zip(a.split(BLOCK, -1), b.split(BLOCK, -1), strict=True)
        total = multiply(*next(blocks)).int()
        for c, d in blocks:
            total += multiply(c, d).int()
    return total


def product_bytes(n: int, n_samples: int = BLOCK) -> int:
    """Memory for a product of n by n and for adding it to 64-bit counts; operands of `n_samples` are converted."""
    return 12 * n**2 + 10 * n * n_samples


def has_integer_products() -> bool:
    """Whether oneDNN multiplies signed bytes, fast and exactly. A caller may have switched it off; torch then has a
    loop, which is slow, and exact on every CPU."""
    return bool(torch.backends.mkldnn.enabled) and _is_exact(_integer_product)


def has_byte_products() -> bool:
    """Whether oneDNN multiplies unsigned by signed bytes, fast and exactly; also if it is switched off."""
    return _is_exact(_byte_product)


@functools.cache
def _is_exact(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether oneDNN multiplies so on this CPU, without overflow."""
    if not (torch.backends.mkldnn.is_available() and torch.cpu.get_capabilities().get("avx2")):
        return False
    largest = torch.full((2, 64), 127, dtype=torch.int8)
    return bool((multiply(largest, largest) == 64 * 127**2).all())


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    if 1 in (*a.shape, len(b)):  # torch 2.13 mistakes the strides, and leaves results undefined
        return a.int() @ b.int().t()
    return torch._int_mm(a.contiguous(), b.contiguous().t())


def _byte_product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, by the operators behind quantized linear layers, with scales of 1."""
    a, b = a.contiguous(), b.contiguous()
    onednn = torch.ops.onednn
    packed = onednn.qlinear_prepack(b, list(a.shape))
    scales = torch.ones(len(b), dtype=torch.float32)
    zeros = torch.zeros(len(b), dtype=torch.int32)
    return onednn.qlinear_pointwise(
        *(a.view(torch.uint8), 1.0, 0, packed, scales, zeros, None, 1.0, 0),
        *(torch.float32, "none", [], ""),
    )


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    return a.float() @ b.float().t()
