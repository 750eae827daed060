"""Run a computation independently of torch's global state, and leave that state as it was.

A caller may have changed the default dtype or device, switched on TF32 or bfloat16 products, or be inside autocast or
inference mode. None of these may change a result: `isolated` sets each to torch's own default and restores it.

Default dtype and product precision belong to the whole process. While several threads are inside `isolated`, the first
saves them and the last restores them; a thread outside sees torch's defaults meanwhile, and what it sets may be lost.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _ProcessDefaults(NamedTuple):
    dtype: torch.dtype
    products: str | None  # the setting of `torch.set_float32_matmul_precision`, if torch can tell
    backends: list[str]  # `fp32_precision` of `_backends()`; [] if no float32 product is rounded


_lock = threading.Lock()
_threads_inside = 0
_saved = _ProcessDefaults(torch.float32, None, [])


@contextmanager
def isolated() -> Iterator[None]:
    """Compute in float32 products of full precision, on explicit devices, without autocast or inference mode.

    A context manager, and with parentheses a decorator of functions.
    """
    with ExitStack() as stack:
        stack.enter_context(_process_defaults())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _process_defaults() -> Iterator[None]:
    global _threads_inside, _saved
    with _lock:
        if _threads_inside == 0:
            _saved = _set_defaults()
        _threads_inside += 1
    try:
        yield
    finally:
        with _lock:
            _threads_inside -= 1
            if _threads_inside == 0:
                _restore(_saved)


def _after_fork() -> None:
    """In the child of a fork only the thread that forked goes on; those that were inside never come out."""
    global _lock, _threads_inside
    _lock = threading.Lock()
    if _threads_inside:
        _restore(_saved)
        _threads_inside = 0


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def _set_defaults() -> _ProcessDefaults:
    dtype, products, precisions = torch.get_default_dtype(), None, []
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    if any(backend.fp32_precision not in ("none", "ieee") for backend in _backends()):
        try:
            products = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch refuses to tell if the caller used only the names of `_backends`
            products = None
        for backend in _backends():  # from the general to the special: "none" is inherited
            precisions.append(backend.fp32_precision)
            backend.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    return _ProcessDefaults(dtype, products, precisions)


def _restore(saved: _ProcessDefaults) -> None:
    if saved.dtype != torch.float32 and torch.get_default_dtype() == torch.float32:  # nobody else has set it
        torch.set_default_dtype(saved.dtype)
    if saved.products is not None:
        torch.set_float32_matmul_precision(saved.products)
    if saved.backends:
        for backend, precision in zip(_backends(), saved.backends, strict=True):
            backend.fp32_precision = precision


def _backends() -> tuple[Any, ...]:
    """Where torch lets float32 products be rounded to fewer bits: everywhere, in CUDA, and in products of matrices.

    `torch.backends.mkldnn` is no place of its own: torch 2.13 writes its setting to `torch.backends`.
    """
    backends: Any = torch.backends
    return backends, backends.cudnn, backends.cuda.matmul, backends.mkldnn.matmul
