"""Arrays with names, and sparse ones: tables of pandas, polars and pyarrow, AnnData, and SciPy's sparse matrices.

Each library is a small class with the same methods, and is looked up among the modules that are loaded: whoever hands
in a table has imported its library. (A layer over all of them, such as narwhals, would be a dependency of every user
for the few calls below, and knows neither AnnData nor sparse matrices.)
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mikernels.errors import SamplesTypeError, SamplesValueError

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 2**24
"""Of a sparse matrix that are made dense at a time."""


class Library(Protocol):
    """Reads the tables of a library and makes new ones. Values are NumPy's, names a sequence."""

    def owns(self, value: object) -> bool:
        """Whether it is a table or a column of this library."""

    def names(self, value: Any) -> Sequence[Any]:
        """Of the columns."""

    def values(self, value: Any, name: str) -> Any:
        """`[M, N]`, an array that is no table; raises SamplesError for columns of other things than numbers."""

    def matrix(self, values: "np.ndarray", rows: Any, columns: Any) -> Any:
        """A table of `values [N, K]` with names, as the library's own `corr` labels a matrix."""

    def frame(self, columns: Mapping[str, Any]) -> Any:
        """A table of columns by name."""

    def like(self, value: Any, values: "np.ndarray") -> Any:
        """`values` in the shape and with the labels of `value`."""


def is_a(value: object, module: str, *classes: str) -> bool:
    """Whether it is an instance of one of the classes of a module, if that is loaded."""
    loaded = sys.modules.get(module)
    found = tuple(c for name in classes if isinstance(c := getattr(loaded, name, None), type))
    return isinstance(value, found)


class Pandas:
    def owns(self, value: object) -> bool:
        return is_a(value, "pandas", "DataFrame", "Series")

    def names(self, value: Any) -> Sequence[Any]:
        if value.ndim == 1:
            return [0 if value.name is None else value.name]
        return value.columns

    def values(self, value: Any, name: str) -> Any:
        import numpy as np

        _check_names(self.names(value), name)
        dtypes = list(np.atleast_1d(np.asarray(value.dtypes, dtype=object)))
        are_numbers = [getattr(dtype, "kind", "O") in "fiub" for dtype in dtypes]
        _check_columns(self.names(value), dtypes, are_numbers, name)
        if len(set(dtypes)) == 1 and (array := np.asarray(value)).dtype != object:  # as missing values are
            return array
        columns = [value] if value.ndim == 1 else [value.iloc[:, i] for i in range(value.shape[1])]
        return stacked([_pandas_column(column) for column in columns], len(value), name)

    def matrix(self, values: "np.ndarray", rows: Any, columns: Any) -> Any:
        import pandas as pd

        return pd.DataFrame(values, index=rows, columns=columns, copy=False)

    def frame(self, columns: Mapping[str, Any]) -> Any:
        import pandas as pd

        # A level of names each would not fit into one column.
        flat = {name: c.to_flat_index() if isinstance(c, pd.Index) else c for name, c in columns.items()}
        return pd.DataFrame(flat)

    def like(self, value: Any, values: "np.ndarray") -> Any:
        import pandas as pd

        if value.ndim == 1:
            return pd.Series(values, index=value.index, name=value.name)
        return self.matrix(values, value.index, value.columns)


class AnnData(Pandas):
    """Variables are the columns of `X`, with their names in `var_names`; results are tables of pandas."""

    def owns(self, value: object) -> bool:
        return is_a(value, "anndata", "AnnData")

    def names(self, value: Any) -> Sequence[Any]:
        return value.var_names

    def values(self, value: Any, name: str) -> Any:
        if value.X is None:
            raise SamplesTypeError(
                f"{name}: expected an AnnData with values in X, got one without; pass one of its layers as an array"
            )
        _check_names(value.var_names, name, "; call var_names_make_unique() on it")
        return in_memory(value.X)


def in_memory(matrix: Any) -> Any:
    """A matrix of an AnnData, read if it is a sparse one in a file."""
    return matrix.to_memory() if hasattr(matrix, "to_memory") else matrix


class Polars:
    def owns(self, value: object) -> bool:
        return is_a(value, "polars", "DataFrame", "Series")

    def names(self, value: Any) -> Sequence[Any]:
        return value.columns if hasattr(value, "columns") else [value.name]

    def values(self, value: Any, name: str) -> Any:
        import polars as pl

        columns = value.get_columns() if hasattr(value, "get_columns") else [value]
        dtypes = [column.dtype for column in columns]
        are_numbers = [d.is_float() or d.is_integer() or d in (pl.Boolean, pl.Null) for d in dtypes]
        _check_columns(self.names(value), dtypes, are_numbers, name)
        arrays = [
            (c.cast(pl.Float64) if c.dtype in (pl.Boolean, pl.Null) and c.null_count() else c).to_numpy()
            for c in columns
        ]
        return stacked(arrays, len(value), name)

    def matrix(self, values: "np.ndarray", rows: Any, columns: Any) -> Any:
        import polars as pl

        return pl.DataFrame(values, schema=[str(c) for c in columns], orient="row")

    def frame(self, columns: Mapping[str, Any]) -> Any:
        import polars as pl

        return pl.DataFrame(dict(columns))

    def like(self, value: Any, values: "np.ndarray") -> Any:
        import polars as pl

        if not hasattr(value, "columns"):
            return pl.Series(value.name, values)
        return self.matrix(values, None, value.columns)


class PyArrow:
    def owns(self, value: object) -> bool:
        return is_a(value, "pyarrow", "Table", "RecordBatch", "ChunkedArray", "Array")

    def names(self, value: Any) -> Sequence[Any]:
        return value.column_names if hasattr(value, "column_names") else ["0"]

    def values(self, value: Any, name: str) -> Any:
        import pyarrow as pa

        _check_names(self.names(value), name)
        columns = value.columns if hasattr(value, "columns") else [value]
        dtypes = [column.type for column in columns]
        is_number = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
        _check_columns(self.names(value), dtypes, [any(f(t) for f in is_number) for t in dtypes], name)
        arrays = [
            # Missing values of other types are NaN in NumPy.
            (
                c.cast(pa.float64())
                if (pa.types.is_boolean(t) and c.null_count) or pa.types.is_null(t)
                else c
            ).to_numpy(zero_copy_only=False)
            for c, t in zip(columns, dtypes, strict=True)
        ]
        return stacked(arrays, len(value), name)

    def matrix(self, values: "np.ndarray", rows: Any, columns: Any) -> Any:
        import pyarrow as pa

        return pa.table([pa.array(column) for column in values.T.copy()], names=[str(c) for c in columns])

    def frame(self, columns: Mapping[str, Any]) -> Any:
        import pyarrow as pa

        return pa.table(dict(columns))

    def like(self, value: Any, values: "np.ndarray") -> Any:
        import pyarrow as pa

        if not hasattr(value, "column_names"):
            return pa.array(values)
        return self.matrix(values, None, value.column_names)


LIBRARIES: tuple[Library, ...] = (Pandas(), AnnData(), Polars(), PyArrow())


def library_of(value: object) -> Library | None:
    """The library of a table, a column of one, or an AnnData; None for anything else."""
    return next((library for library in LIBRARIES if library.owns(value)), None)


def take(names: Any, index: "np.ndarray") -> Any:
    """The names at the places `index`."""
    return [names[i] for i in index.tolist()] if isinstance(names, list | range) else names[index]


def stacked(columns: "Sequence[np.ndarray]", n_rows: int, name: str) -> "np.ndarray":
    """Columns `[M]` side by side in a dtype that holds all of their values: `[M, N]`, each column contiguous.

    Raises:
        SamplesValueError: 64-bit integers beside other numbers, that float64 cannot tell apart.
    """
    import numpy as np

    dtype = np.result_type(*columns) if columns else np.dtype(np.float32)
    out = np.empty((len(columns), n_rows), dtype)
    for row, column in zip(out, columns, strict=True):
        is_wide = column.dtype.kind in "iu" and column.dtype.itemsize == 8
        if dtype.kind == "f" and is_wide and bool((abs(column.astype(np.float64)) >= 2.0**53).any()):
            raise SamplesValueError(
                f"{name}: expected integers between -2^53 and 2^53, which float64 holds exactly, got larger ones; "
                f"subtract an offset first"
            )
        row[:] = column
    return out.T


def check_order(x: object, y: object, name: str) -> None:
    """Raise SamplesValueError for rows of two tables with labels in common that are not all in the same places: here
    the first row of one belongs to the first of the other, whereas pandas pairs them by label. The numbers of a
    `RangeIndex` say something only where both tables have the same ones."""
    if isinstance(x, Tensor) or y is None:  # nothing here for `torch.compile` to trace
        return
    ours, theirs = _labels(x), _labels(y)
    if ours is None or theirs is None or len(ours) != len(theirs) or ours.equals(theirs):
        return
    by_default = any(is_a(labels, "pandas", "RangeIndex") for labels in (ours, theirs))
    if set(ours) == set(theirs) if by_default else not set(ours).isdisjoint(theirs):
        raise SamplesValueError(
            f"{name}: expected the rows of the other table, got labels of them in other places; use {name}.loc[] with "
            f"the labels of the other table, or pass arrays to pair them by place, as for lags: {name}.to_numpy()"
        )


def _labels(value: object) -> Any:
    """The labels of the rows of a table of pandas or an AnnData, which is an index of pandas; None without."""
    if is_a(value, "anndata", "AnnData"):
        return value.obs_names  # type: ignore[attr-defined]
    return value.index if is_a(value, "pandas", "DataFrame", "Series") else None  # type: ignore[attr-defined]


def is_sparse(value: object) -> bool:
    return is_a(value, "scipy.sparse", "sparray", "spmatrix")


def dense(value: Any, name: str) -> Tensor:
    """The dense tensor of SciPy's sparse matrix `value [M, N]`, each column contiguous, made a few columns at a time.

    Raises:
        SamplesTypeError: no real numbers.
        SamplesValueError: it is larger than the memory of this machine.
    """
    if value.ndim != 2 or value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        raise SamplesTypeError(
            f"{name}: expected a sparse matrix of real numbers of at most 64 bits, got one of {value.dtype} with shape "
            f"{list(value.shape)}"
        )
    n_samples, n_variables = value.shape
    size = n_samples * n_variables * value.dtype.itemsize
    if size > (memory := _memory()):
        raise SamplesValueError(
            f"{name}: expected a sparse matrix of at most {memory / 1e9:.0f} GB when dense, got {size / 1e9:.0f} GB; "
            f"pass some of its columns at a time, as {name} and y"
        )
    columns = value.tocsc()
    dtype = getattr(torch, value.dtype.name)
    out = torch.empty(n_variables, n_samples, dtype=dtype)
    step = max(1, CHUNK_BYTES // (n_samples * value.dtype.itemsize or 1))
    for start in range(0, n_variables, step):
        part = columns[:, start : start + step].toarray(order="F")
        out[start : start + step] = torch.from_numpy(part.T)
    return out.t()


def _memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return float("inf")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _pandas_column(column: Any) -> "np.ndarray":
    """A column as NumPy's; NaN in float64 for missing values."""
    import numpy as np

    if column.isna().any():
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    given = column.dtype  # may be an extension type, or one of sparse values
    dtype = getattr(given, "numpy_dtype", getattr(given, "subtype", given))
    return column.to_numpy(dtype=dtype)


def _check_names(names: Any, name: str, advice: str = "; rename them") -> None:
    """Raise SamplesValueError for two columns of one name: results could not tell them apart."""
    if len(set(names)) < len(names):
        again = next(label for i, label in enumerate(names) if label in set(names[:i]))
        raise SamplesValueError(
            f"{name}: expected columns of different names, got {again!r} more than once{advice}"
        )


def _check_columns(names: Any, dtypes: Sequence[Any], are_numbers: Sequence[bool], name: str) -> None:
    """Raise SamplesTypeError for columns that hold no real numbers."""
    bad = [(label, dtype) for label, dtype, good in zip(names, dtypes, are_numbers, strict=True) if not good]
    if bad:
        label, dtype = bad[0]
        raise SamplesTypeError(
            f"{name}: expected columns of real numbers, got {dtype} in {label!r}, and {len(bad)} such of {len(dtypes)} "
            f"columns; leave them out (in the command with --drop), or convert them to numbers"
        )
