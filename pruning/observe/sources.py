"""Where text comes from: plain text, JSON lines, Parquet, Hugging Face data sets, and the text that ships with Python.

A source yields documents from any position, so that windows spread over a large file cost no more than what they hold.
A position may lie within a text, since a few long texts, such as books, must give as many different windows as short
ones. A document is a text, or a conversation: a list of messages for the tokenizer's chat template.
"""

import codecs
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, AnyStr, BinaryIO, Protocol

from pruning.observe.samples import SELF, Samples
from pruning.observe.text import builtin_text

Document = str | list[dict[str, Any]]

BUILTIN = "builtin"
PIECE_BYTES = 2**16
LONGEST_WORD = 64
"""Characters; a text without white space so far, such as Chinese, is cut anywhere."""
TEXT_COLUMNS = ("text", "content")
MESSAGES_COLUMNS = ("messages", "conversations")


class Source(Protocol):
    """Documents in order.

    Attributes:
        name: for the manifest and for messages.
        separator: what joins neighboring texts into one; None where every text stands alone.
    """

    @property
    def name(self) -> str: ...

    @property
    def separator(self) -> str | None: ...

    def documents(self, start: float = 0.0) -> Iterator[Document]:
        """The documents from the share `start` (0 to 1) of the source to its end. What is left of a text that begins
        before is the first, unless texts stand alone: then it is complete."""


@dataclass(frozen=True)
class Records:
    """Records with random access by row: texts in memory, or a data set."""

    name: str
    rows: Sequence[Any]
    separator: str | None = None

    def documents(self, start: float = 0.0) -> Iterator[Document]:
        share, first = _place(start, len(self.rows))
        for row in range(first, len(self.rows)):
            found = document(self.rows[row], f"{self.name}: row {row}")
            yield found if row > first or self.separator is None else _rest(found, share)


@dataclass(frozen=True)
class _File:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path)


class TextFile(_File):
    """A UTF-8 file, read in pieces from any place."""

    separator = ""

    def documents(self, start: float = 0.0) -> Iterator[Document]:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
        with self.path.open("rb") as file:
            file.seek(int(start * self.path.stat().st_size))
            piece = file.read(PIECE_BYTES)
            if not start:
                piece = piece.removeprefix(codecs.BOM_UTF8)
            elif (rest := _from_next_word(piece)) != piece:
                piece = rest
            else:
                piece = piece.lstrip(bytes(range(0x80, 0xC0)))  # the rest of a character of several bytes
            while True:
                try:
                    yield decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]
                    place = file.tell() - len(error.object) + error.start
                    raise ValueError(
                        f"{self.path}: expected UTF-8 text, got byte {byte:#x} at {place}"
                    ) from error
                if not piece:
                    return
                piece = file.read(PIECE_BYTES)


class JsonLinesFile(_File):
    """A UTF-8 file with one JSON record per line, read from any place."""

    separator = "\n\n"

    def documents(self, start: float = 0.0) -> Iterator[Document]:
        with self.path.open("rb") as file:
            before = _to_line(file, int(start * self.path.stat().st_size))
            while line := file.readline():
                share, before = before / len(line), 0
                place = f"{self.path}: byte {file.tell() - len(line)}"
                try:
                    record = json.loads(line.decode("utf-8-sig")) if line.strip() else None
                except ValueError as error:  # a decoding error is one too
                    raise ValueError(f"{place}: expected one JSON record per line: {error}") from error
                if record is not None:
                    yield _rest(document(record, place), share)


class ParquetFile(_File):
    """A Parquet file, one row group in memory at a time."""

    separator = "\n\n"

    def documents(self, start: float = 0.0) -> Iterator[Document]:
        parquet = _parquet()
        try:
            file = parquet.ParquetFile(self.path)
        except ValueError as error:
            raise ValueError(f"{self.path}: expected a Parquet file: {error}") from error
        with file:
            column = _column(file.schema_arrow.names, str(self.path))
            share, first = _place(start, file.metadata.num_rows)
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                if first < end:
                    skip = max(0, first - begin)
                    rows = file.read_row_group(group, columns=[column]).slice(skip).to_pylist()
                    for number, row in enumerate(rows, begin + skip):
                        found = document(row, f"{self.path}: row {number}")
                        yield found if number > first else _rest(found, share)
                begin = end


def open_sources(specs: Sequence[str], *, builtin_half: int = 0) -> list[tuple[Source | Samples, float]]:
    """The sources that `SOURCE` or `SOURCE=WEIGHT` stand for, each with its weight, by default 1.

    Raises:
        ValueError: a weight that is not from 1e-9 to 1e9; see also `open_source`.
    """
    found = []
    for spec in specs:
        name, equals, weight = spec.rpartition("=")
        if not equals or Path(spec).exists():
            name, weight = spec, "1"
        try:
            share = float(weight)
        except ValueError:
            share = 0.0
        if not 1e-9 <= share <= 1e9:
            raise ValueError(f"{spec}: expected a number from 1e-9 to 1e9 behind '=', got {weight!r}")
        found.append((open_source(name, builtin_half=builtin_half), share))
    return found


def open_source(spec: str | Path, *, builtin_half: int = 0) -> Source | Samples:
    """The source that a name stands for: a file by its ending, `builtin`, `self`, or `NAME[:CONFIG[:SPLIT]]` on the
    hub or, with a colon, in a folder.

    Raises:
        FileNotFoundError: no such file, and no such name.
        IsADirectoryError: a folder.
        ValueError: an empty file, text that is not UTF-8, records without text.
        ImportError: a package that this kind of source needs is not installed.
    """
    if spec == SELF:
        return Samples()
    if spec == BUILTIN:
        return builtin(builtin_half)
    path = Path(spec)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: expected a file of text, got a folder; of a folder with a data set name the split: {path}::train"
        )
    kind = path.suffix.lower()
    if not path.is_file():
        folder, colon, _ = str(spec).partition(":")
        if colon and Path(folder).is_dir():
            return _hub(str(spec))
        is_path = isinstance(spec, Path) or path.is_absolute() or spec.startswith(".")
        if is_path or (kind and ":" not in str(spec)):
            raise FileNotFoundError(f"{path}: no such file")
        return _hub(str(spec))
    files: dict[str, Callable[[Path], Source]] = {
        ".parquet": ParquetFile,
        ".jsonl": JsonLinesFile,
        ".ndjson": JsonLinesFile,
        ".json": _json,
    }
    source: Source = files.get(kind, TextFile)(path)
    if not any(not isinstance(first, str) or first.strip() for first in source.documents()):
        raise ValueError(f"{path}: expected text, got an empty file")
    return source


def builtin(half: int = 0) -> Records:
    """The text that ships with Python, the half for calibration (0) or for evaluation (1)."""
    return Records(BUILTIN, [builtin_text()[half]], separator="\n\n")


def _json(path: Path) -> Source:
    """A file of JSON lines, as many are under this name, or of one list of records."""
    with path.open("rb") as file:
        if not file.read(PIECE_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return JsonLinesFile(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a list of JSON records: {error}") from error
    return Records(str(path), records, separator="\n\n")


def document(record: Any, place: str) -> Document:
    """The text or the conversation in a record: a string, or a mapping with `text` or `messages`.

    Raises:
        ValueError: a record of another form, named by `place`.
    """
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected a text or a record, got {type(record).__name__}")
    column = _column(list(record), place)
    value = record[column]
    if column in TEXT_COLUMNS and isinstance(value, str):
        return value
    if column in MESSAGES_COLUMNS and isinstance(value, list) and all(map(_is_message, value)):
        return value
    raise ValueError(
        f"{place}: expected {column!r} to hold a text or a list of messages with role and content"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and "content" in value


def _column(names: Sequence[str], place: str) -> str:
    for name in (*TEXT_COLUMNS, *MESSAGES_COLUMNS):
        if name in names:
            return name
    raise ValueError(
        f"{place}: expected a field {', '.join(map(repr, (*TEXT_COLUMNS, *MESSAGES_COLUMNS)))}, "
        f"got {', '.join(map(repr, names)) or 'none'}"
    )


def _place(start: float, count: int) -> tuple[float, int]:
    """The share of a record that lies before the share `start` of so many, and its number."""
    share, first = math.modf(round(start * count, 6))  # 29 of 100 may be 28.999999999999996
    return share, int(first)


def _rest(found: Document, share: float) -> Document:
    """What is behind the share `share` of a text, from the next word on if there are words; all of a conversation."""
    if not isinstance(found, str) or not (cut := int(share * len(found))):
        return found
    ahead = found[cut : cut + LONGEST_WORD]
    return found[cut + len(ahead) - len(_from_next_word(ahead).lstrip()) :]


def _to_line(file: BinaryIO, place: int) -> int:
    """Go to the start of the line that the byte `place` is in; return how many bytes before it that is."""
    start = place
    while start > 0:
        begin = max(0, start - PIECE_BYTES)
        file.seek(begin)
        if (found := file.read(start - begin).rfind(b"\n")) >= 0:
            start = begin + found + 1
            break
        start = begin
    file.seek(start)
    return place - start


def _from_next_word(text: AnyStr) -> AnyStr:
    """Without what is left of a word at the beginning, if there is another."""
    words = text.split(maxsplit=1)
    return words[1] if len(words) == 2 and not text[:1].isspace() else text


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'mikernels[data]'") from error
    return pyarrow.parquet


def _hub(spec: str) -> Source:
    name, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{spec}: no such file; to read it from the Hugging Face hub: pip install 'mikernels[data]'"
        ) from error
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train")
    finally:
        if had_bars:
            datasets.enable_progress_bars()
    column = _column(rows.column_names, spec)  # others, such as images, would cost time to decode
    return Records(spec, rows.select_columns([column]), separator="\n\n")
