"""Progress bars and the time of each stage."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

T = TypeVar("T")


def track(items: Iterable[T], stage: str, *, show: bool) -> Iterable[T]:
    """Iterate over `items` with a progress bar on standard error."""
    return progress_bar(stage, len(items) if isinstance(items, Sized) else None, show=show, items=items)


def progress_bar(stage: str, total: int | None, *, show: bool, items: Iterable[T] | None = None) -> "tqdm[T]":
    """A progress bar on standard error, to close and to update by hand where there are no `items` to iterate over."""
    return tqdm(items, desc=f"{stage:<9}", total=total, disable=not show, dynamic_ncols=True)


class Stages(dict[str, float]):
    """The seconds of each stage.

    Attributes:
        peak_bytes: the most memory that the process had had by the end of a stage in which it had more than ever
            before: on a GPU that of torch there, otherwise resident memory; empty where that cannot be told.
    """

    peak_bytes: dict[str, int]

    def __new__(cls) -> "Stages":  # a copy from another process gets its entries before its attributes
        stages = super().__new__(cls)
        stages.peak_bytes = {}
        return stages

    def __setitem__(self, stage: str, seconds: float) -> None:
        super().__setitem__(stage, seconds)
        peak = _peak_bytes()
        if peak > max(self.peak_bytes.values(), default=0):
            self.peak_bytes[stage] = peak


def _peak_bytes() -> int:
    """The most memory that this process has had; 0 if unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to `seconds[stage]`."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
