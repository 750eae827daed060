"""The stored weights of a model, which are read one by one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pruning.model.headers import files_by_name


class Checkpoint(ABC):
    """Weights in files.

    Attributes:
        path: of the file or the folder.
        files: that of each weight, by its name.
        descriptions: the files that say what the weights are of: the config and the code of the model.
    """

    path: Path
    files: Mapping[str, Path]
    descriptions: Sequence[Path] = ()

    @abstractmethod
    def read(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Any]]:
        """Within the block `weights[name][...]` reads a weight."""

    @abstractmethod
    def header_size(self, file: Path) -> int:
        """Bytes in front of the weights in a file."""


class SafetensorsFolder(Checkpoint):
    """Safetensors in a folder, with or without an index.

    Raises:
        ValueError: see `pruning.model.headers.files_by_name`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, files_by_name(path)
        self.descriptions = [path / "config.json", *sorted(path.glob("*.py"))]

    @contextmanager
    def read(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            opened = {
                file: stack.enter_context(safe_open(file, "pt"))
                for file in sorted({self.files[name] for name in names})
            }
            yield {name: opened[self.files[name]].get_slice(name) for name in names}

    def header_size(self, file: Path) -> int:
        with file.open("rb") as handle:
            return 8 + int.from_bytes(handle.read(8), "little")
