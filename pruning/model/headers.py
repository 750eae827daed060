"""The headers of safetensors files: what is stored, without reading the weights."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from pruning.model.loaded import name_some

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The floating-point dtypes that a model can be pruned in, by their names in the headers."""


class Entry(NamedTuple):
    """A stored tensor: its shape, and the name of its dtype in the safetensors format."""

    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in a folder, by the rule of transformers: `model.safetensors`, else those that
    the index names; all in a folder without either.

    Others may lie beside them: the same weights in another precision, averaged ones, or in the format of another
    library.

    Raises:
        ValueError: an index that cannot be read.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return sorted({folder / file for file in _index(folder).values()})
    return sorted(folder.glob("*.safetensors"))


def read_headers(folder: Path) -> dict[str, Entry]:
    """The tensors in the files of the model in a folder, by name.

    Raises:
        ValueError: a file is cut off or not a safetensors file; see also `weight_files`.
    """
    files = (file for file in weight_files(folder) if file.is_file())
    return {name: entry for file in files for name, entry in read_header(file).items()}


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors in a file, by name.

    Raises:
        ValueError: it is cut off or not a safetensors file.
    """
    try:
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
            start = handle.tell()
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        entries = {name: Entry(tuple(e["shape"]), e["dtype"]) for name, e in header.items()}
    except (
        ValueError,
        OverflowError,
        MemoryError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise ValueError(f"{file}: expected a safetensors file, got an unreadable header") from error
    if file.stat().st_size < start + end:
        raise ValueError(
            f"{file}: expected {start + end} bytes as in its header, got {file.stat().st_size}; copy it again"
        )
    return entries


def data_bytes(file: Path) -> int:
    """Bytes of the tensors in a file, without its header."""
    with file.open("rb") as handle:
        return file.stat().st_size - 8 - int.from_bytes(handle.read(8), "little")


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most stored floating-point weights; None if none is in one of `DTYPES`."""
    counts: Counter[str] = Counter()
    for entry in read_headers(folder).values():
        counts[entry.dtype] += torch.Size(entry.shape).numel()
    found = [name for name, _ in counts.most_common() if name in DTYPES]
    return DTYPES[found[0]] if found else None


def files_by_name(folder: Path) -> dict[str, Path]:
    """The file of each weight of the model in a folder.

    Raises:
        ValueError: a file is cut off or not a safetensors file, or the index names weights that the files do not have.
    """
    files = {name: file for file in weight_files(folder) if file.is_file() for name in read_header(file)}
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        named = {name: folder / file for name, file in _index(folder).items()}
        if wrong := [name for name, file in named.items() if files.get(name) != file]:
            raise ValueError(
                f"{folder / INDEX}: expected files with the weights that it names, got none with {name_some(wrong)}; "
                f"copy the files again"
            )
        return named
    return files


def _index(folder: Path) -> Mapping[str, str]:
    """The file of each weight that the index of a folder names."""
    try:
        index: Mapping[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / INDEX}: expected an index of weights, got an unreadable one") from error
    return index
