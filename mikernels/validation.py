"""Check samples. Every message says what was expected and what was given."""

import torch
from torch import Tensor

from mikernels.arrays import to_tensor
from mikernels.errors import SamplesTypeError, SamplesValueError

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


def as_samples(
    value: object, name: str, device: torch.device | str | None, *, min_samples: int = MIN_SAMPLES
) -> Tensor:
    """Convert `value` to a tensor `[M, N]` on `device`, without reading its numbers.

    Args:
        value: an array or a table (`mikernels.arrays`) of real numbers; one dimension is one variable. Integers,
            booleans and 8-bit floats become float32, or float64 where that is not exact; 64-bit integers stay what they
            are until `read_values`.

    Raises:
        SamplesTypeError: not an array of real numbers.
        SamplesValueError: not two-dimensional, too few samples, no columns, masked values, or no values at all (meta
            device).
    """
    tensor = as_tensor(value, name)
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    if tensor.ndim != 2:
        raise SamplesValueError(
            f"{name}: expected shape [samples, variables], got {tensor.ndim} dimensions: {list(tensor.shape)}"
        )
    if tensor.shape[0] < min_samples:
        raise SamplesValueError(
            f"{name}: expected at least {min_samples} samples (rows), got {tensor.shape[0]}"
        )
    if tensor.shape[1] < 1:
        raise SamplesValueError(
            f"{name}: expected at least one variable (column), got shape {list(tensor.shape)}"
        )
    target = None if device is None else torch.device(device)
    if tensor.is_meta and target is not None and target.type != "meta":
        refuse_meta(name)
    return tensor.to(target)


def as_tensor(value: object, name: str) -> Tensor:
    """Convert `value` of any shape to a tensor where it is; see `as_samples` for what is accepted."""
    tensor = _dense(value, name) if isinstance(value, Tensor) else to_tensor(value, name)
    if tensor.dtype in _EXACT:
        return tensor.to(_EXACT[tensor.dtype])
    if tensor.dtype not in _FLOATS + _WIDE_INTEGERS:
        raise SamplesTypeError(f"{name}: expected real numbers, got a tensor of {tensor.dtype}")
    return tensor


def read_values(value: Tensor, name: str, *, check: bool = True) -> Tensor:
    """`value [M, N]` in a floating-point dtype, after a look at its numbers unless `check` is False.

    A look waits for the device of the numbers.

    Raises:
        SamplesValueError: NaN, infinities (with counts and the first bad column), integers that float64 cannot tell
            apart, or no values (meta device).
    """
    if value.is_meta:
        refuse_meta(name)
    if value.dtype in _WIDE_INTEGERS:
        numbers = value.to(torch.float64)
        if check and bool((numbers.abs() >= 2.0**53).any()):
            raise SamplesValueError(
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
    raise SamplesValueError(
        f"{name}: expected finite values, got {int(nan.sum())} NaN and {int(infinite.sum())} infinite "
        f"in {len(bad)} of {value.shape[1]} columns (the first is column {int(bad[0])})"
    )


def _dense(value: Tensor, name: str) -> Tensor:
    """`value`, detached, if it is an ordinary tensor."""
    if value.is_nested:
        raise SamplesTypeError(
            f"{name}: expected rows of one length, got a nested tensor; pad or cut its rows"
        )
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise SamplesTypeError(
            f"{name}: expected a dense tensor, got the layout {layout}; call to_dense() on it"
        )
    if value.is_quantized:
        raise SamplesTypeError(
            f"{name}: expected real numbers, got a quantized tensor; call dequantize() on it"
        )
    if isinstance(value, torch.masked.MaskedTensor):
        raise SamplesTypeError(
            f"{name}: expected values everywhere, got a MaskedTensor; call to_tensor(fill) on it"
        )
    if hasattr(value, "full_tensor"):
        raise SamplesTypeError(
            f"{name}: expected a tensor in one place, got a DTensor; call full_tensor() on it"
        )
    return value.detach()


def refuse_meta(name: str) -> None:
    raise SamplesValueError(f"{name}: expected values, got a tensor on the meta device, which holds none")
