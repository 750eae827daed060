"""Samples of any library: how they become a tensor, and how results become an array of the same kind.

Nothing but torch is imported before an array of another library comes in. Values are shared, not copied, unless torch
cannot address them where they are. Tables are in `mikernels.frames`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Union

import torch
import torch.utils.dlpack
from torch import Tensor

from mikernels import frames
from mikernels.errors import SamplesError, SamplesTypeError, SamplesValueError
from mikernels.pairs import Pairs
from mikernels.provenance import recall, remember

if TYPE_CHECKING:
    import numpy as np


class Array(Protocol):
    """What NumPy reads as an array: an xarray, and others."""

    def __array__(self) -> Any: ...


class DLPackArray(Protocol):
    """What shares its memory by DLPack: arrays of JAX, CuPy and the array API standard."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


class SparseArray(Protocol):
    """A sparse matrix of SciPy."""

    def toarray(self) -> Any: ...


class AnnotatedArray(Protocol):
    """An AnnData: `X` with a name for each variable."""

    X: Any
    var_names: Any


Samples = Union[
    Tensor, "np.ndarray", Array, DLPackArray, SparseArray, AnnotatedArray, list[Any], tuple[Any, ...]
]

_SMALL_NUMPY_TYPES = ("float8_", "float6_", "float4_", "int4", "int2", "uint4", "uint2")
"""Beginnings of the names of ml_dtypes' types that float32 holds."""
_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 10: "cuda", 13: "cuda", 14: "xpu"}
"""The devices of DLPack that torch addresses, by their number: CUDA's, ROCm's and oneAPI's, and memory of the host."""


def to_tensor(value: object, name: str) -> Tensor:
    """`value`, an array or a table of any shape, as a tensor where it is; its numbers are not read.

    Raises:
        SamplesTypeError: no array, an array of something else than real numbers, or one that torch cannot address.
        SamplesValueError: masked values, or two columns of one name.
    """
    if isinstance(value, Tensor):
        return value
    table = frames.library_of(value)
    if isinstance(value, Pairs) or (table is not None and list(table.names(value)) == list(Pairs._fields)):
        raise SamplesTypeError(
            f"{name}: expected an array of numbers of one kind, got pairs, whose first and second are columns; pass "
            f"their mi, or to a function of pairs those of arrays without names"
        )
    if table is not None:
        inner, given = table.values(value, name), value
        if inner is given:
            raise SamplesTypeError(f"{name}: expected a table of numbers, got {type(value).__name__}")
        return to_tensor(inner, name)
    if frames.is_sparse(value):
        return frames.dense(value, name)
    if hasattr(value, "__dlpack__") and not frames.is_a(value, "numpy", "ndarray", "generic"):
        return _from_dlpack(value, name)
    return _from_numpy(_as_numpy(value, name), name)


@dataclass(frozen=True)
class Kind:
    """The kind of array that a caller uses, and the names of its columns.

    Attributes:
        give: a tensor as an array of the kind, without names.
        table: the library of a table; None for arrays without names.
        names: of its columns; None for arrays without names.
    """

    give: Callable[[Tensor], Any]
    table: frames.Library | None = None
    names: Sequence[Any] | None = None

    def matrix(self, mi: Tensor, others: "Kind | None" = None) -> Any:
        """`mi [N, K]` with the names of rows (these) and of columns (those of `others`, or the same)."""
        found = self.give(mi)
        if self.table is not None:
            names = (self if others is None else others).names
            found = self.table.matrix(found, self.names, range(mi.shape[1]) if names is None else names)
        return with_note(found, mi)

    def pairs(self, pairs: Pairs, others: "Kind | None" = None) -> Any:
        """The pairs as arrays of the kind, or as a table with the names in place of the columns."""
        if self.table is None:
            return Pairs(*(with_note(self.give(t), t) for t in pairs))
        first, second, mi = (self.give(t) for t in pairs)
        names = (self if others is None else others).names
        return with_note(
            self.table.frame(
                {
                    "first": frames.take(self.names, first),
                    "second": second if names is None else frames.take(names, second),
                    "mi": mi,
                }
            ),
            pairs.mi,
        )


def kind_of(value: Any) -> Kind:
    """The kind of what was read by `to_tensor`; NumPy's for lists and for whatever NumPy alone can read."""
    if isinstance(value, Tensor):
        return Kind(lambda t: t)
    if (table := frames.library_of(value)) is not None:
        return Kind(_numpy, table, table.names(value))
    if not hasattr(value, "__dlpack__") or (make := _from_dlpack_of(value)) is None:
        return Kind(_numpy)
    number, index = value.__dlpack_device__()
    device = _DEVICES[int(number)]
    place = torch.device(device) if device == "cpu" else torch.device(device, index)
    return Kind(lambda t: make(t.to(place)))


def as_given(mi: Tensor, x: object, y: object = None) -> Any:
    """A matrix of the variables of `x` with those of `y`, or with each other, as an array of the kind of `x`."""
    if isinstance(x, Tensor):
        return mi
    return kind_of(x).matrix(mi, None if y is None else kind_of(y))


def pairs_as_given(pairs: Pairs, x: object, y: object = None) -> Any:
    """Pairs of variables of `x` (and `y`) as arrays of the kind of `x`, or a table with their names."""
    if isinstance(x, Tensor):
        return pairs
    return kind_of(x).pairs(pairs, None if y is None else kind_of(y))


def shaped_as_given(values: Tensor, given: object) -> Any:
    """Values of the same shape as `given`, with its labels; a number gives a tensor."""
    if isinstance(given, Tensor | int | float):
        return values
    kind = kind_of(given)
    found = kind.give(values)
    return found if kind.table is None else kind.table.like(given, found)


def with_note(array: Any, tensor: Tensor) -> Any:
    """`array`, which remembers what `tensor` was made with."""
    if (note := recall(tensor)) is not None:
        remember(array, note)
    return array


def _numpy(values: Tensor) -> "np.ndarray":
    return values.cpu().numpy()


def _from_dlpack_of(value: Any) -> Callable[[Tensor], Any] | None:
    """The function that makes an array of the library of `value`; None if that has none, and for NumPy's."""
    module = type(value).__module__
    if frames.is_a(value, "numpy", "ndarray"):
        return None
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__().from_dlpack
    for name in (module, module.partition(".")[0]):
        if hasattr(sys.modules.get(name), "from_dlpack"):
            return sys.modules[name].from_dlpack
    return None


def _from_dlpack(value: Any, name: str) -> Tensor:
    number, index = value.__dlpack_device__()
    device = _DEVICES.get(int(number))
    if device is None or (device != "cpu" and not torch.get_device_module(device).is_available()):
        raise SamplesTypeError(
            f"{name}: expected an array on a device that this build of torch has, got {type(value).__name__} on "
            f"{number!r} {index}; copy it to the CPU, for example with numpy.asarray({name})"
        )
    try:
        if device == "cpu":
            return _from_numpy(_host_array(value), name)
        if any(stride < 0 for stride in getattr(value, "strides", None) or ()):
            value = value.copy()  # torch ends the process at a negative stride
        return torch.utils.dlpack.from_dlpack(value)
    except SamplesError:
        raise
    except Exception as error:  # whatever the other library raises
        raise SamplesTypeError(
            f"{name}: expected an array that torch can read, got {type(value).__name__} ({error}); copy it first, for "
            f"example with numpy.array({name})"
        ) from error


def _host_array(value: Any) -> "np.ndarray":
    """An array on the CPU, which NumPy reads in any strides; types that it does not know come by `__array__`."""
    import numpy as np

    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError):
        if not hasattr(value, "__array__"):
            raise
        return np.asarray(value)


def _from_numpy(array: "np.ndarray", name: str) -> Tensor:
    import numpy as np

    if array.dtype.name == "bfloat16":  # of ml_dtypes; torch has the same type under its own name
        return _shared(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.name.startswith(_SMALL_NUMPY_TYPES):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        advice = "; convert it with astype(float)" if array.dtype.kind in "OUSf" else ""
        raise SamplesTypeError(
            f"{name}: expected real numbers of at most 64 bits, got an array of {array.dtype}{advice}"
        )
    return _shared(array)


def _shared(array: "np.ndarray") -> Tensor:
    """A tensor of the same memory; of a copy for foreign byte order and strides that torch does not have."""
    import numpy as np

    if not array.dtype.isnative or any(s < 0 or s % array.itemsize for s in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if array.flags.writeable:
        return torch.from_numpy(array)
    try:
        return torch.utils.dlpack.from_dlpack(array)  # `from_numpy` warns of arrays that are read-only
    except (BufferError, TypeError):  # NumPy before 2.1
        return torch.from_numpy(array.copy())


def _as_numpy(value: object, name: str) -> "np.ndarray":
    import numpy as np

    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        raise SamplesTypeError(
            f"{name}: expected a torch tensor, an array or a list of rows, got {type(value).__name__}"
        )
    if isinstance(value, list | tuple) and any(np.ma.isMaskedArray(row) for row in value):
        value = np.ma.asarray(value)
    if np.ma.isMaskedArray(value) and (n_masked := int(np.ma.getmaskarray(value).sum())):
        raise SamplesValueError(
            f"{name}: expected values everywhere, got a masked array with {n_masked} masked values; drop or fill them"
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SamplesTypeError(
            f"{name}: expected an array of numbers, got {type(value).__name__} that NumPy cannot read ({error})"
        ) from error
