"""How fast this machine does what pruning does, measured in a few seconds."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import mikernels
from pruning.choose.elimination import conditional_mi
from pruning.observe.moments import add_product
from pruning.settings import Settings

SECONDS = 0.15
"""That each rate is measured for, after one call that does not count."""
FILE_BYTES = 2**26


class Sizes(NamedTuple):
    """Of what is measured: as small as it can be at the speed of large ones.

    Attributes:
        product: rows and columns of the matrices that are multiplied.
        factor: rows of those that are decomposed.
        stream: rows, of `product` columns, that a product with a vector reads; more bytes than caches have.
        pairs: neurons whose pairs with as many others are measured.
        few: neurons whose elimination takes no time but that of starting operations.
    """

    product: int
    factor: int
    stream: int
    pairs: int
    few: int


ON_CPU = Sizes(product=1024, factor=2048, stream=16384, pairs=256, few=64)
ON_GPU = Sizes(product=8192, factor=8192, stream=16384, pairs=2048, few=2048)


@dataclass(frozen=True)
class Rates:
    """Measured rates.

    Attributes:
        product: FLOP/s of matrix products in the dtype that the model computes in.
        product32, product64: in float32 (`pruning.observe.moments`) and float64.
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
    sizes = ON_CPU if torch.device(device).type == "cpu" else ON_GPU
    generator = torch.Generator(device).manual_seed(0)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    square = random(sizes.product, sizes.product)
    total = torch.zeros_like(square)

    def seconds(call: Callable[[], object]) -> float:
        return _seconds(call, device)

    def product(dtype: torch.dtype) -> float:
        values = square.to(dtype)
        return 2 * sizes.product**3 / seconds(lambda: values @ values)

    def factor(dtype: torch.dtype) -> float:
        positive = torch.full((sizes.factor, sizes.factor), 0.5, dtype=dtype, device=device)
        positive.diagonal().fill_(1)
        return sizes.factor**3 / 3 / seconds(lambda: torch.linalg.cholesky(positive))

    long = random(sizes.stream, sizes.product)
    sample = random(settings.sample_size, 2 * sizes.pairs)
    few = square[: sizes.few, : sizes.few]
    read, write = _disk(folder)
    return Rates(
        product=product(dtype),
        product32=2 * sizes.product**3 / seconds(lambda: add_product(total, square, square)),
        product64=product(torch.float64),
        factor32=factor(torch.float32),
        factor64=factor(torch.float64),
        stream=long.nbytes / seconds(lambda: long @ long[0]),
        step=seconds(lambda: conditional_mi(few @ few.t(), few)) / sizes.few,
        pair=seconds(lambda: _pairs(sample, settings)) / sizes.pairs**2,
        read=read,
        write=write,
    )


def _pairs(sample: Tensor, settings: Settings) -> Tensor:
    left, right = sample.chunk(2, dim=1)
    return mikernels.mutual_information(left, right, estimator=settings.estimator, nodes=settings.nodes)


def _seconds(call: Callable[[], object], device: str) -> float:
    """The least seconds of a call."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    call()
    wait()
    best, spent = float("inf"), 0.0
    while spent < SECONDS:
        start = time.perf_counter()
        call()
        wait()
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
