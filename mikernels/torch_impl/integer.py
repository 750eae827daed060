"""Exact matrix products of 8-bit integers from 0 to 127.

On x86 oneDNN multiplies bytes: unsigned by signed ones, which needs no correction of signs. Without VNNI it adds two
products in 16 bits, which 2 x 127^2 fits and `torch._int_mm`, signed by signed, may exceed. On such CPUs this takes
half the time of float32 products (measured). Elsewhere bytes are converted to float32.
"""

import functools

import torch
from torch import Tensor

EXACT = 2**24
"""Below this, float32 holds every integer."""
BLOCK = 1024
"""Samples to multiply at a time if nothing more is known of the sums: 127^2 x 1024 is below `EXACT`."""


def byte_gram(a: Tensor, b: Tensor) -> Tensor:
    """`a b^T` of int8 `a [..., M]` and `b [..., M]`: float32 `[n, k]`, leading dimensions flattened.

    Exact if all entries are from 0 to 127, and all sums below `EXACT`.
    """
    a, b = a.flatten(0, -2), b.flatten(0, -2)
    if a.device.type == "cpu" and has_byte_products():
        return _byte_product(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().t()


def integer_gram(a: Tensor, b: Tensor) -> Tensor:
    """`byte_gram` as int32, exact for any sums that fit."""
    blocks = zip(a.split(BLOCK, -1), b.split(BLOCK, -1), strict=True)
    total = byte_gram(*next(blocks)).int()
    for c, d in blocks:
        total += byte_gram(c, d).int()
    return total


def product_bytes(n: int, n_samples: int = BLOCK) -> int:
    """Memory for a product of n by n and for adding it to 64-bit counts; operands of `n_samples` are converted."""
    return 12 * n**2 + 10 * n * n_samples


@functools.cache
def has_byte_products() -> bool:
    """Whether oneDNN multiplies bytes, fast and exactly."""
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx2_supported()):
        return False
    largest = torch.full((2, 64), 127, dtype=torch.int8)
    return torch.equal(
        _byte_product(largest, largest), torch.full((2, 2), 64 * 127.0**2, dtype=torch.float32)
    )


def _byte_product(a: Tensor, b: Tensor) -> Tensor:
    """By the operators behind quantized linear layers, with scales of 1."""
    onednn = torch.ops.onednn
    packed = onednn.qlinear_prepack(b.contiguous(), list(a.shape))
    scales = torch.ones(len(b), dtype=torch.float32)
    zeros = torch.zeros(len(b), dtype=torch.int32)
    return onednn.qlinear_pointwise(
        *(a.contiguous().view(torch.uint8), 1.0, 0, packed, scales, zeros, None, 1.0, 0),
        *(torch.float32, "none", [], ""),
    )
