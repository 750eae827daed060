"""Torch's global states that a caller may be in, and what can be seen of them."""

from contextlib import contextmanager

import torch


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def precisions() -> tuple:
    """By all names that torch has for it; some names raise where others were used."""
    backends = torch.backends
    places = (backends, backends.cudnn, backends.cuda.matmul, backends.mkldnn.matmul)
    try:
        old_names = (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32)
    except RuntimeError:
        old_names = ()
    return (*(place.fp32_precision for place in places), *old_names)


@contextmanager
def products_in(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def allow_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def fp32_precision(place, precision):
    before = place.fp32_precision
    place.fp32_precision = precision
    try:
        yield
    finally:
        place.fp32_precision = before


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta device": lambda: default_device("meta"),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "TF32": lambda: products_in("high"),
    "bfloat16 products": lambda: products_in("medium"),
    "TF32 by its old name": lambda: allow_tf32(),
    "TF32 by its new name": lambda: fp32_precision(torch.backends.cuda.matmul, "tf32"),
    "TF32 everywhere": lambda: fp32_precision(torch.backends, "tf32"),
    "without oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}


def state() -> tuple:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        precisions(),
        torch.backends.mkldnn.enabled,
        torch.get_num_threads(),
        torch.random.get_rng_state().tolist(),
    )
