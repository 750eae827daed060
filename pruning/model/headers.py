"""The headers of safetensors files: what is stored, without reading the weights."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pruning.model.loaded import name_some

INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The floating-point dtypes that a model can be pruned in, by their names in the headers."""


class Entry(NamedTuple):
    """A stored tensor: its shape, and the name of its dtype in the safetensors format."""

    shape: tuple[int, ...]
    dtype: str


def read_headers(folder: Path, pattern: str = "*.safetensors") -> dict[str, Entry]:
    """The tensors in all safetensors files of `folder` with names of a pattern, by name.

    Raises:
        ValueError: a file is cut off or not a safetensors file.
    """
    entries: dict[str, Entry] = {}
    for file in sorted(folder.glob(pattern)):
        try:
            with file.open("rb") as handle:
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
                start = handle.tell()
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            entries |= {name: Entry(tuple(e["shape"]), e["dtype"]) for name, e in header.items()}
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


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most stored floating-point weights; None if none is in one of `DTYPES`."""
    counts: Counter[str] = Counter()
    for entry in read_headers(folder).values():
        counts[entry.dtype] += torch.Size(entry.shape).numel()
    found = [name for name, _ in counts.most_common() if name in DTYPES]
    return DTYPES[found[0]] if found else None


def files_by_name(folder: Path) -> dict[str, Path]:
    """The file of each stored weight.

    Raises:
        ValueError: a file is cut off or not a safetensors file, or the index names others than the files have.
    """
    names = {file: read_headers(folder, file.name) for file in sorted(folder.glob("*.safetensors"))}
    files = {name: file for file, entries in names.items() for name in entries}
    if (folder / INDEX).is_file():
        index: Mapping[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        wrong = [name for name, file in index.items() if files.get(name) != folder / file]
        if wrong:
            raise ValueError(
                f"{folder / INDEX}: expected files with the weights that it names, got none with {name_some(wrong)}; "
                f"copy the files again"
            )
        files = {name: folder / file for name, file in index.items()}
    return files
