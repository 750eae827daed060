"""Caches that live as long as the process: bounded, and emptied together."""

import functools
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

_caches: list["functools._lru_cache_wrapper[object]"] = []


def cached(maxsize: int) -> Callable[[Callable[..., Value]], "functools._lru_cache_wrapper[Value]"]:
    """`functools.lru_cache(maxsize)` that `clear_caches` empties.

    A function that returns tensors on a device takes the device as an argument, so that every device has its own.
    """

    def decorate(function: Callable[..., Value]) -> "functools._lru_cache_wrapper[Value]":
        cache = functools.lru_cache(maxsize)(function)
        _caches.append(cache)
        return cache

    return decorate


def clear_caches() -> None:
    """Forget all constant tables, calibration curves, null distributions and autotuned tile sizes.

    Frees their memory on every device; the next call makes what it needs again. GPU memory goes back to torch's
    allocator, and with `torch.cuda.empty_cache()` to the GPU.
    """
    for cache in _caches:
        cache.cache_clear()
