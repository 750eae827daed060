"""Exact products of 8-bit integers."""

import torch
from torch import Tensor


def integer_gram(a: Tensor, b: Tensor) -> Tensor:
    """`a^T b` of `a [M, n]` and `b [M, k]` (int8): exact, int32, which the caller sees not to overflow."""
    if has_fast_int8(a.device) and min(a.shape[1], b.shape[1]) > 1:  # of one column torch 2.13 makes zeros
        return torch._int_mm(a.t(), b)
    # float32 is exact up to 2^24 > 127^2 x 1024.
    out = torch.zeros(a.shape[1], b.shape[1], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for c, d in zip(a.split(1024), b.split(1024), strict=True):
            out += (c.t().float() @ d.float()).int()
    return out


def has_fast_int8(device: torch.device) -> bool:
    """Whether `torch._int_mm` is exact and fast: on x86 CPUs with VNNI, which neither saturates nor loops."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()
