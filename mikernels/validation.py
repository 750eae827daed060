"""Check samples. Every message says what was expected and what was given."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

MIN_SAMPLES = 8

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WIDE_INTEGERS = (torch.int64, torch.uint64)
_EXACT = {  # the float dtype that holds every value of another dtype
    torch.bool: torch.float32,
    torch.int8: torch.float32,
    torch.uint8: torch.float32,
    torch.int16: torch.float32,
    torch.uint16: torch.float32,
    torch.int32: torch.float64,
    torch.uint32: torch.float64,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e4m3fnuz: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.float8_e5m2fnuz: torch.float32,
    torch.float8_e8m0fnu: torch.float32,
}
_SMALL_NUMPY_TYPES = ("float8_", "float6_", "float4_", "int4", "int2", "uint4", "uint2")
"""Beginnings of the names of ml_dtypes' types that float32 holds."""


def as_samples(
    value: object, name: str, device: torch.device | str | None, *, min_samples: int = MIN_SAMPLES
) -> Tensor:
    """Convert `value` to a tensor `[M, N]` on `device`, without reading its numbers.

    Args:
        value: a dense torch tensor, an array (NumPy's or anything with `__array__`), or a list of rows, of real
            numbers; one dimension is one variable. Integers, booleans and 8-bit floats become float32, or float64
            where that is not exact; 64-bit integers stay what they are until `read_values`.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: not two-dimensional, too few samples, no columns, masked values, or no values at all (meta device).
    """
    tensor = as_tensor(value, name)
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    if tensor.ndim != 2:
        raise ValueError(
            f"{name}: expected shape [samples, variables], got {tensor.ndim} dimensions: {list(tensor.shape)}"
        )
    if tensor.shape[0] < min_samples:
        raise ValueError(f"{name}: expected at least {min_samples} samples (rows), got {tensor.shape[0]}")
    if tensor.shape[1] < 1:
        raise ValueError(f"{name}: expected at least one variable (column), got shape {list(tensor.shape)}")
    target = None if device is None else torch.device(device)
    if tensor.is_meta and target is not None and target.type != "meta":
        refuse_meta(name)
    return tensor.to(target)


def as_tensor(value: object, name: str) -> Tensor:
    """Convert `value` of any shape to a tensor where it is; see `as_samples` for what is accepted."""
    tensor = _dense(value, name) if isinstance(value, Tensor) else _from_array(value, name)
    if tensor.dtype in _EXACT:
        return tensor.to(_EXACT[tensor.dtype])
    if tensor.dtype not in _FLOATS + _WIDE_INTEGERS:
        raise TypeError(f"{name}: expected real numbers, got a tensor of {tensor.dtype}")
    return tensor


def read_values(value: Tensor, name: str, *, check: bool = True) -> Tensor:
    """`value [M, N]` in a floating-point dtype, after a look at its numbers unless `check` is False.

    A look waits for the device of the numbers.

    Raises:
        ValueError: NaN, infinities (with counts and the first bad column), integers that float64 cannot tell apart, or
            no values (meta device).
    """
    if value.is_meta:
        refuse_meta(name)
    if value.dtype in _WIDE_INTEGERS:
        numbers = value.to(torch.float64)
        if check and bool((numbers.abs() >= 2.0**53).any()):
            raise ValueError(
                f"{name}: expected integers between -2^53 and 2^53, which float64 holds exactly, got larger ones; "
                f"subtract an offset first"
            )
        return numbers
    if not check:
        return value
    # A sum is finite only if every term is. It can also overflow, hence the exact check below.
    if bool(torch.isfinite(value.sum(dtype=torch.float32 if value.dtype.itemsize < 4 else value.dtype))):
        return value
    nan, infinite = torch.isnan(value), torch.isinf(value)
    bad = (nan | infinite).any(dim=0).nonzero().flatten()
    if len(bad) == 0:
        return value
    raise ValueError(
        f"{name}: expected finite values, got {int(nan.sum())} NaN and {int(infinite.sum())} infinite "
        f"in {len(bad)} of {value.shape[1]} columns (the first is column {int(bad[0])})"
    )


def _dense(value: Tensor, name: str) -> Tensor:
    """`value`, detached, if it is an ordinary tensor."""
    if value.is_nested:
        raise TypeError(f"{name}: expected rows of one length, got a nested tensor; pad or cut its rows")
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor, got the layout {layout}; call to_dense() on it")
    if value.is_quantized:
        raise TypeError(f"{name}: expected real numbers, got a quantized tensor; call dequantize() on it")
    if isinstance(value, torch.masked.MaskedTensor):
        raise TypeError(f"{name}: expected values everywhere, got a MaskedTensor; call to_tensor(fill) on it")
    if hasattr(value, "full_tensor"):
        raise TypeError(f"{name}: expected a tensor in one place, got a DTensor; call full_tensor() on it")
    return value.detach()


def _from_array(value: object, name: str) -> Tensor:
    import numpy as np

    array = _as_numpy(value, name)
    if array.dtype.name == "bfloat16":  # of ml_dtypes; torch has the same type under its own name
        return torch.from_numpy(_plain(array.view(np.int16))).view(torch.bfloat16)
    if array.dtype.name.startswith(_SMALL_NUMPY_TYPES):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        advice = "; convert it with astype(float)" if array.dtype.kind in "OUSf" else ""
        raise TypeError(
            f"{name}: expected real numbers of at most 64 bits, got an array of {array.dtype}{advice}"
        )
    return torch.from_numpy(_plain(array))


def _plain(array: "np.ndarray") -> "np.ndarray":
    """torch rejects read-only arrays, foreign byte order and negative strides: copy those."""
    import numpy as np

    return np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])


def _as_numpy(value: object, name: str) -> "np.ndarray":
    import numpy as np

    if hasattr(value, "toarray"):  # scipy.sparse
        raise TypeError(f"{name}: expected a dense array, got {type(value).__name__}; call toarray() on it")
    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        raise TypeError(
            f"{name}: expected a torch tensor, an array or a list of rows, got {type(value).__name__}"
        )
    if isinstance(value, list | tuple) and any(np.ma.isMaskedArray(row) for row in value):
        value = np.ma.asarray(value)
    if np.ma.isMaskedArray(value) and (n_masked := int(np.ma.getmaskarray(value).sum())):
        raise ValueError(
            f"{name}: expected values everywhere, got a masked array with {n_masked} masked values; drop or fill them"
        )
    try:
        array = np.asarray(value)
        return _read_columns(value, array) if array.dtype == object else array
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected an array of numbers, got {type(value).__name__} that NumPy cannot read ({error})"
        ) from error


def _read_columns(table: Any, array: "np.ndarray") -> "np.ndarray":
    """A pandas table whose numeric columns hold missing values or have several dtypes, which NumPy reads as objects:
    float64 with NaN for missing values. `array`, as NumPy read it, for anything else, also if float64 is not exact."""
    import numpy as np

    if not (hasattr(table, "to_numpy") and hasattr(table, "dtypes")):
        return array
    dtypes = np.atleast_1d(np.asarray(table.dtypes, dtype=object))
    kinds = {getattr(dtype, "kind", "O") for dtype in dtypes}
    if not kinds <= set("fiub"):
        return array
    numbers: np.ndarray = table.to_numpy(dtype=np.float64, na_value=np.nan)
    is_exact = kinds <= set("fb") or not bool((abs(numbers) >= 2.0**53).any())
    return numbers if is_exact else array


def require_float64(device: torch.device) -> None:
    """Raise ValueError for a device that does not compute in float64, as Apple's GPUs (MPS)."""
    if not _has_float64(device):
        raise ValueError(
            f"device: expected one that computes in float64, such as a CPU or a CUDA GPU, got {str(device)!r}; "
            f"pass device='cpu'"
        )


@functools.cache
def _has_float64(device: torch.device) -> bool:
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        torch.zeros((), dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def refuse_meta(name: str) -> None:
    raise ValueError(f"{name}: expected values, got a tensor on the meta device, which holds none")
