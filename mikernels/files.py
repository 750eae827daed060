"""Files of samples in, tables of pairs out, for the command: CSV, TSV, Parquet, NumPy's .npy and AnnData's .h5ad.

Each library is imported when a file of its kind comes.
"""

import errno
import math
import os
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


def read(path: str) -> tuple[Any, list[str] | None]:
    """The samples in a file, as an array or table with a row for each sample and a column for each variable; and the
    names of the rows, if it has some: a first column without a name, what pandas calls the index, or `obs_names`.

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
        return _read_text(file, SEPARATORS[ending])
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


def _read_text(file: Path, separator: str) -> tuple[Any, list[str] | None]:
    csv = load("pyarrow.csv")
    table = csv.read_csv(
        file,
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(delimiter=separator),
    )
    names = table.column_names
    other = next((s for s in ("\t", ",", ";") if s != separator and len(names) == 1 and s in names[0]), None)
    if other is not None:
        raise SamplesValueError(
            f"{file}: expected columns that are separated by {separator!r}, got one column with {other!r} in it; name "
            f"the file by its separator, .csv for ',' and .tsv for a tab"
        )
    has_names = bool(names) and names[0] == "" and table.num_columns > 1
    if has_names:
        names = names[1:]
    # Names may be 0, 1, ..., and any numbers behind the empty name of the names of rows.
    if names and not has_names and all(map(_is_number, names)):
        data = next((name for name in names if float(name) < 0 or float(name) % 1), None)
        if data is not None:
            raise SamplesValueError(
                f"{file}: expected a first line with the names of the columns, got numbers such as {data}; add one, or "
                f"a letter to one of the names if these are names"
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


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


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
