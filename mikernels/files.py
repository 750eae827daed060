"""Files of samples in, tables of pairs out, for the command: CSV, TSV, Parquet, NumPy's .npy and AnnData's .h5ad.

Each library is imported when a file of its kind comes.
"""

import errno
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from mikernels.arrays import kind_of
from mikernels.errors import SamplesTypeError, SamplesValueError
from mikernels.written import complete_file

BLOCK_BYTES = 2**26
"""Of a text file that is parsed at a time: a row of 5,000 numbers takes 100 kB."""
ROWS = 2**20
"""Of a table that are written at a time: names take more memory than their places."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
COMPRESSED = (".gz", ".bz2", ".zst")
READ = (*SEPARATORS, ".parquet", ".npy", ".h5ad")
WRITTEN = (*SEPARATORS, ".parquet")
SIGNS = {
    b"PAR1": "Parquet",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive",
}
"""How files begin, and what they then are."""
EXPECTED = {".parquet": "Parquet", ".npy": "a NumPy array", ".h5ad": "HDF5", ".csv": "text", ".tsv": "text"}
EXPECTED |= {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


def load(package: str) -> Any:
    """A module of an optional package.

    Raises:
        ImportError: with what to install.
    """
    try:
        return import_module(package)
    except ImportError as error:
        root = package.partition(".")[0]
        what = "mikernels[tables]" if root == "pyarrow" else root
        raise ImportError(
            f"{root}: expected it to be installed; run pip install '{what}' ({error})"
        ) from None


def read(path: str, *, header: bool | None = None) -> tuple[Any, list[str] | None]:
    """The samples in a file, as an array or table with a row for each sample and a column for each variable; and the
    names of the rows, if it has some: a first column without a name, what pandas calls the index, or `obs_names`.

    Args:
        header: whether the first line of a text holds the names of the columns, which are f0, f1, ... without; by
            default it does, and has to be text or 0, 1, ...

    Raises:
        OSError: no file that can be read.
        ImportError: a package that is missing.
        SamplesTypeError: another kind of file, or not the kind that its name says.
        SamplesValueError: no table with a name for each column.
    """
    file = Path(path)
    ending = ending_of(path, READ, packed=True)
    _check_sign(file, file.suffix.lower())
    try:
        if ending == ".npy":
            return load("numpy").load(file, mmap_mode="r", allow_pickle=False), None
        if ending == ".h5ad":
            samples = load("anndata").read_h5ad(file)
            return samples, list(samples.obs_names)
        if ending == ".parquet":
            table = load("pyarrow.parquet").read_table(file)
            index = (table.schema.pandas_metadata or {}).get("index_columns", ())
            return _without(table, [i for i, name in enumerate(table.column_names) if name in index])
        return _read_text(path, SEPARATORS[ending], header)
    except (SamplesValueError, ImportError):
        raise
    except Exception as error:  # whatever the readers raise, also for files that are cut off
        raise SamplesTypeError(
            f"{path}: expected {EXPECTED[ending]} that is complete, got {error}"
        ) from error


def ending_of(path: str, known: Sequence[str], *, packed: bool = False) -> str:
    """The ending of a file name, which is one of `known`; with `packed` that of a compressed text may follow.

    Raises:
        SamplesTypeError: it is none of them.
    """
    *_, before, last = ["", "", *(suffix.lower() for suffix in Path(path).suffixes)]
    ending = before if packed and last in COMPRESSED and before in SEPARATORS else last
    if ending not in known:
        raise SamplesTypeError(
            f"{path}: expected a name that ends in {', '.join(known)}, got {Path(path).name!r}"
        )
    return ending


def check_integers(path: str, table: Any, *, header: bool | None = None) -> None:
    """Raise SamplesValueError for integers in a text that float64 cannot tell apart. A column is of float64 if one of
    its integers is beyond 64 bits, or beside fractions, so columns with large numbers are read again, as they stand.

    Args:
        table: columns that `read` returned, with the same `header`.
    """
    separator = SEPARATORS.get(ending_of(path, READ, packed=True))
    if separator is None:
        return
    pyarrow, csv, compute = (load(name) for name in ("pyarrow", "pyarrow.csv", "pyarrow.compute"))
    large = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.type in (pyarrow.int64(), pyarrow.float64()) and len(column) > column.null_count:
            least, most = compute.min_max(column).as_py().values()
            if max(-least, most) >= 2**53:
                large.append(name)
    if not large:
        return
    convert = csv.ConvertOptions(include_columns=large, column_types=dict.fromkeys(large, pyarrow.string()))
    for batch in csv.open_csv(path, convert_options=convert, **_form(separator, header)):
        for name, texts in zip(large, batch.columns, strict=True):
            integers = texts.filter(compute.match_substring_regex(texts, r"^\s*[+-]?\d{16,}\s*$"))
            found = next((text for text in integers.to_pylist() if abs(float(text)) >= 2**53), None)
            if found is not None:
                raise SamplesValueError(
                    f"{path}: expected integers between -2^53 and 2^53, which float64 holds exactly, got "
                    f"{found.strip()} in column {name!r}; subtract an offset, or leave the column out with --drop"
                )


def columns(table: Any) -> list[Any]:
    """The names of the columns; numbers for an array without names."""
    names = kind_of(table).names
    return list(range(table.shape[1] if table.ndim > 1 else 1)) if names is None else list(names)


def select(table: Any, places: Sequence[int]) -> Any:
    """Some columns of what `read` returns."""
    if list(places) == list(range(len(columns(table)))):
        return table
    return table.select(list(places)) if hasattr(table, "select") else table[:, list(places)]


def write_pairs(
    path: str | None, names: Mapping[str, tuple[list[Any], Tensor]], numbers: Mapping[str, Tensor]
) -> None:
    """Write columns of one length to a file that appears when it is complete, or as CSV to standard output.

    Args:
        path: .csv, .tsv or .parquet; None for standard output.
        names: by the name of the column: all names, and the place in them of each row, `[P]`.
        numbers: by the name of the column: `[P]`.
    """
    pyarrow = load("pyarrow")
    known = {name: pyarrow.array(all_names) for name, (all_names, _) in names.items()}

    def rows(part: slice) -> Any:
        found = {name: known[name].take(_arrow(places[part])) for name, (_, places) in names.items()}
        return pyarrow.table(found | {name: _arrow(values[part]) for name, values in numbers.items()})

    count = len(next(iter(numbers.values())))
    parts = (rows(slice(start, start + ROWS)) for start in range(0, max(1, count), ROWS))
    if path is None:
        _write(parts, os.dup(1), ".csv")
        return
    with complete_file(Path(path)) as unfinished:
        _write(parts, unfinished, Path(path).suffix.lower())


def matrix_file(path: str | Path, shape: tuple[int, int]) -> Any:
    """A new .npy file of float32 `shape`, as an array whose memory is the file.

    Its space on the disk is taken at once where the system can do that: a write to memory that has none left ends the
    process without a word.

    Raises:
        OSError: no space.
    """
    numpy = load("numpy")
    array = numpy.lib.format.open_memmap(path, mode="w+", dtype=numpy.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others: the file system cannot do that
                    raise OSError(error.errno, error.strerror, str(path)) from error
    return array


def _arrow(values: Tensor) -> Any:
    return load("pyarrow").array(values.cpu().numpy())


def _write(parts: Iterator[Any], target: Path | int, ending: str) -> None:
    """Write tables of the same columns one below the other."""
    first = next(parts)
    with open(target, "wb") as file:
        if ending == ".parquet":
            writer = load("pyarrow.parquet").ParquetWriter(file, first.schema)
        else:
            csv, separator = load("pyarrow.csv"), SEPARATORS[ending]
            file.write((separator.join(first.column_names) + "\n").encode())  # pyarrow would quote it
            options = csv.WriteOptions(include_header=False, delimiter=separator)
            writer = csv.CSVWriter(file, first.schema, write_options=options)
        with writer:
            for table in chain([first], parts):
                writer.write_table(table)


def _form(separator: str, header: bool | None) -> dict[str, Any]:
    """How pyarrow reads a text."""
    csv = load("pyarrow.csv")
    return {
        "read_options": csv.ReadOptions(block_size=BLOCK_BYTES, autogenerate_column_names=header is False),
        "parse_options": csv.ParseOptions(delimiter=separator),
    }


def _read_text(path: str, separator: str, header: bool | None) -> tuple[Any, list[str] | None]:
    table = load("pyarrow.csv").read_csv(path, **_form(separator, header))
    names = table.column_names
    other = next((s for s in ("\t", ",", ";") if s != separator and len(names) == 1 and s in names[0]), None)
    if other is not None:
        raise SamplesValueError(
            f"{path}: expected columns that are separated by {separator!r}, got one column with {other!r} in it; name "
            f"the file by its separator, .csv for ',' and .tsv for a tab"
        )
    has_names = names[0] == "" and table.num_columns > 1
    # Names may be 0, 1, ..., and any numbers behind the empty name of the names of rows.
    if header is None and not has_names and all(map(_may_be_value, names)):
        first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        if names != [str(i) for i in range(len(names))]:
            raise SamplesValueError(
                f"{path}: expected a first line with the names of the columns, got {first}; add --no-header if these "
                f"are values, --header if they are names"
            )
        warnings.warn(
            f"{path}: the first line, {first}, is taken for the names of the columns; add --no-header if these are "
            f"values, --header if they are names",
            UserWarning,
            stacklevel=2,
        )
    return _without(table, [0] if has_names else [])


def _without(table: Any, index: list[int]) -> tuple[Any, list[str] | None]:
    """A table without the columns at these places, which name its rows, such as by their numbers before some were
    dropped; and the names."""
    if not index:
        return table, None
    names = [
        ", ".join(map(str, row)) for row in zip(*(table.column(i).to_pylist() for i in index), strict=True)
    ]
    return table.select([i for i in range(table.num_columns) if i not in index]), names


def _may_be_value(text: str) -> bool:
    """Whether it is a number, a truth value, or a missing one."""
    options = load("pyarrow.csv").ConvertOptions()
    if text in (*options.null_values, *options.true_values, *options.false_values):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_sign(file: Path, suffix: str) -> None:
    """Raise SamplesTypeError for a file that does not begin as files of its name do."""
    with open(file, "rb") as opened:
        start = opened.read(512)
    found = next((kind for sign, kind in SIGNS.items() if start.startswith(sign)), None)
    if found is None:
        found = "something else" if b"\0" in start or (not start and EXPECTED[suffix] != "text") else "text"
    if found != EXPECTED[suffix]:
        raise SamplesTypeError(f"{file}: expected {EXPECTED[suffix]}, as its name says, got {found}")
    if not start.strip():
        raise SamplesValueError(
            f"{file}: expected a first line with the names of the columns, got an empty file"
        )
