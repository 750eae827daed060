"""Rates of the machine itself, the upper bound of every estimate."""

from collections.abc import Callable

import torch

from benchmarks.record import timed
from mikernels.torch_impl.integer import byte_gram, has_byte_products, has_integer_products

SIZE = {"cpu": 2048, "cuda": 8192}
SECONDS = 0.1  # each rate is measured for this long


def matmul_rate(precision: str, device: str) -> float:
    """FLOP/s of square matrix products: of bytes for int8 where that is fast, otherwise `torch.mm` in fp32."""
    size = SIZE[device]
    if precision == "int8" and (device == "cuda" or has_integer_products() or has_byte_products()):
        a = torch.randint(0, 128, (size, size), dtype=torch.int8, device=device)
        multiply = (
            (lambda: torch._int_mm(a, a.t())) if device == "cuda" else (lambda: byte_gram(a, a, small=True))
        )
        return 2 * size**3 * _calls_per_second(multiply, device)
    a = torch.randn(size, size, device=device)
    return 2 * size**3 * _calls_per_second(lambda: torch.mm(a, a), device)


def copy_rate(device: str) -> float:
    """Bytes/s read and written by a copy of 256 MiB."""
    a = torch.zeros(2**26, device=device)
    b = torch.zeros_like(a)
    return 2 * a.nbytes * _calls_per_second(lambda: b.copy_(a), device)


def _calls_per_second(call: Callable[[], object], device: str) -> float:
    call()
    calls, elapsed = 0, 0.0
    while elapsed < SECONDS:
        elapsed += timed(call, device)[1]
        calls += 1
    return calls / elapsed
