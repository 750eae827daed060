"""Check inputs. Every message says what was expected and what was given."""

import torch
from torch import Tensor

MIN_SAMPLES = 8
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_samples(
    value: object, name: str, device: torch.device | str | None, *, min_samples: int = MIN_SAMPLES
) -> Tensor:
    """Convert `value`, a torch tensor or NumPy array `[M, N]`, to a tensor on `device`, without reading its numbers.

    Raises:
        TypeError: not an array, or not of a real floating-point dtype.
        ValueError: not two-dimensional, too few samples, or no columns.
    """
    if not isinstance(value, Tensor):
        value = _from_numpy(value, name)
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name}: expected a real floating-point dtype, got {value.dtype} (accepted: {', '.join(map(str, DTYPES))})"
        )
    if value.ndim != 2:
        raise ValueError(
            f"{name}: expected shape [samples, variables], got {value.ndim} dimensions: {list(value.shape)}"
        )
    if value.shape[0] < min_samples:
        raise ValueError(f"{name}: expected at least {min_samples} samples (rows), got {value.shape[0]}")
    if value.shape[1] < 1:
        raise ValueError(f"{name}: expected at least one variable (column), got shape {list(value.shape)}")
    return value.detach().to(device)


def check_finite(value: Tensor, name: str) -> None:
    """Raise ValueError, with counts and the first bad column, if `value [M, N]` has a NaN or an infinity."""
    # A sum is finite only if every term is. It can also overflow, hence the exact check below.
    if bool(torch.isfinite(value.sum(dtype=torch.float32 if value.dtype.itemsize < 4 else value.dtype))):
        return
    nan, infinite = torch.isnan(value), torch.isinf(value)
    bad = (nan | infinite).any(dim=0).nonzero().flatten()
    if len(bad) == 0:
        return
    raise ValueError(
        f"{name}: expected finite values, got {int(nan.sum())} NaN and {int(infinite.sum())} infinite "
        f"in {len(bad)} of {value.shape[1]} columns (the first is column {int(bad[0])})"
    )


def _from_numpy(value: object, name: str) -> Tensor:
    import numpy as np

    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a torch tensor or a NumPy array, got {type(value).__name__}")
    if not np.issubdtype(value.dtype, np.floating) or value.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected a float16, float32 or float64 array, got {value.dtype}")
    # torch rejects read-only arrays, foreign byte order and negative strides: copy those.
    return torch.from_numpy(np.require(value, dtype=value.dtype.newbyteorder("="), requirements=["C", "W"]))
