"""How fast this machine does what pruning does, measured in a few seconds."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import mikernels
from pruning.choose.elimination import conditional_mi
from pruning.settings import Settings

SECONDS = 0.15
"""That each rate is measured for, after one call that does not count."""
SIZE = 1024
"""Rows and columns of the matrices that are multiplied."""
FACTORED = 2048
"""Rows of those that are decomposed, which reach their speed only when they are large."""
FILE_BYTES = 2**26
PAIRED = 256
"""Neurons whose pairs with as many others are measured."""
FEW = 64
"""Neurons whose elimination takes no time but that of starting operations."""


@dataclass(frozen=True)
class Rates:
    """Measured rates.

    Attributes:
        product: FLOP/s of matrix products in the dtype that the model computes in.
        product32, product64: in float32 and float64.
        factor32, factor64: FLOP/s of a Cholesky decomposition, n^3 / 3 of them, and what follows from it.
        stream: bytes/s that a matrix-vector product reads.
        step: seconds of one step of backward elimination that reads next to nothing.
        pair: seconds for the mutual information of one pair of neurons.
        read, write: bytes/s of the disk; of files that are not in the memory of the operating system, where it can be
            told to forget them.
    """

    product: float
    product32: float
    product64: float
    factor32: float
    factor64: float
    stream: float
    step: float
    pair: float
    read: float
    write: float


def measure_rates(settings: Settings, dtype: torch.dtype, device: str, folder: Path) -> Rates:
    """Measure them all, in this process and with its number of threads.

    Args:
        settings: sample and estimator of the mutual information.
        dtype: that the model computes in.
        folder: on the disk that will be written to.
    """
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(SIZE, SIZE, generator=generator).to(device)

    def seconds(call: Callable[[], object]) -> float:
        return _seconds(call, device)

    def product(dtype: torch.dtype) -> float:
        values = square.to(dtype)
        return 2 * SIZE**3 / seconds(lambda: values @ values)

    def factor(dtype: torch.dtype) -> float:
        positive = torch.full((FACTORED, FACTORED), 0.5, dtype=dtype, device=device)
        positive.diagonal().fill_(1)
        return FACTORED**3 / 3 / seconds(lambda: torch.linalg.cholesky(positive))

    long = torch.randn(16 * SIZE, SIZE, generator=generator).to(device)  # 64 MB, more than most caches
    sample = torch.randn(settings.sample_size, 2 * PAIRED, generator=generator).to(device)
    few = square[:FEW, :FEW]
    read, write = _disk(folder)
    return Rates(
        product=product(dtype),
        product32=product(torch.float32),
        product64=product(torch.float64),
        factor32=factor(torch.float32),
        factor64=factor(torch.float64),
        stream=long.nbytes / seconds(lambda: long @ long[0]),
        step=seconds(lambda: conditional_mi(few @ few.t(), few)) / FEW,
        pair=seconds(lambda: _pairs(sample, settings)) / PAIRED**2,
        read=read,
        write=write,
    )


def _pairs(sample: Tensor, settings: Settings) -> Tensor:
    return mikernels.mutual_information(
        sample[:, :PAIRED], sample[:, PAIRED:], estimator=settings.estimator, nodes=settings.nodes
    )


def _seconds(call: Callable[[], object], device: str) -> float:
    """The least seconds of a call."""
    call()
    best, spent = float("inf"), 0.0
    while spent < SECONDS:
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        spent += time.perf_counter() - start
    return best


def _disk(folder: Path) -> tuple[float, float]:
    """Bytes/s of reading and of writing."""
    data = os.urandom(FILE_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        write = len(data) / (time.perf_counter() - start)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        file.read()
        return len(data) / (time.perf_counter() - start), write
