"""Progress bars and the time of each stage."""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], stage: str, *, show: bool) -> Iterable[T]:
    """Iterate over `items` with a progress bar on standard error."""
    return progress_bar(stage, len(items) if isinstance(items, Sized) else None, show=show, items=items)


def progress_bar(stage: str, total: int | None, *, show: bool, items: Iterable[T] | None = None) -> "tqdm[T]":
    """A progress bar on standard error, to close and to update by hand where there are no `items` to iterate over."""
    return tqdm(items, desc=f"{stage:<9}", total=total, disable=not show, dynamic_ncols=True)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to `seconds[stage]`."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
