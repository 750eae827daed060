"""What the machine can do: the roof over every estimate."""

import time
from collections.abc import Callable

import torch

from mikernels.torch_impl.integer import has_fast_int8

SIZE = {"cpu": 2048, "cuda": 8192}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(precision: str, device: str, seconds: float = 0.1) -> float:
    """FLOP/s of square products in the dtype: `torch.mm` in fp32, `torch._int_mm` in int8 where it is fast."""
    size = SIZE[device]
    if precision == "int8" and (device == "cuda" or has_fast_int8(torch.device(device))):
        a = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
        return 2 * size**3 * _calls_per_second(lambda: torch._int_mm(a.t(), a), device, seconds)
    a = torch.randn(size, size, device=device)
    return 2 * size**3 * _calls_per_second(lambda: torch.mm(a, a), device, seconds)


def memory_rate(device: str, seconds: float = 0.1) -> float:
    """Bytes/s of a copy of 256 MiB, read and written."""
    a = torch.zeros(2**26, device=device)
    b = torch.zeros_like(a)
    return 2 * a.nbytes * _calls_per_second(lambda: b.copy_(a), device, seconds)


def _calls_per_second(call: Callable[[], object], device: str, seconds: float) -> float:
    call()
    synchronize(device)
    start = time.perf_counter()
    calls = 0
    while (elapsed := time.perf_counter() - start) < seconds or calls == 0:
        call()
        synchronize(device)
        calls += 1
    return calls / elapsed
