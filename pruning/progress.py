"""One progress bar for each stage, with the time left."""

from collections.abc import Iterable, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], stage: str, *, show: bool) -> Iterable[T]:
    """`items`, with a bar on standard error while they are used."""
    total = len(items) if isinstance(items, Sized) else None
    return tqdm(items, desc=f"{stage:<9}", total=total, disable=not show, dynamic_ncols=True, leave=True)
