"""Exact matrix products of 8-bit integers."""

import torch
from torch import Tensor

BLOCK = 1024
"""Samples to multiply at a time in float32, which is exact up to 2^24 > 127^2 x 1024."""


def integer_gram(a: Tensor, b: Tensor) -> Tensor:
    """`a^T b` of int8 `a [M, n]` and `b [M, k]`: exact int32 `[n, k]`. The caller must rule out overflow."""
    if has_fast_int8(a.device) and min(a.shape[1], b.shape[1]) > 1:  # torch 2.13 returns zeros for one column
        return torch._int_mm(a.t(), b)
    out = torch.zeros(a.shape[1], b.shape[1], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for c, d in zip(a.split(BLOCK), b.split(BLOCK), strict=True):
            out += (c.t().float() @ d.float()).int()
    return out


def product_bytes(n: int) -> int:
    """Memory for `integer_gram` of n columns with n others, and for adding it to 64-bit counts."""
    return 12 * n**2 + 8 * BLOCK * n


def has_fast_int8(device: torch.device) -> bool:
    """Whether `torch._int_mm` is exact and fast: on x86 CPUs with VNNI. Without, it saturates or is slow."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()
