"""What a run that writes layer by layer needs to go on after it was killed: one file, replaced after each layer."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.model.output_folder import sync

STATE = "unfinished.state"


class State:
    """The state behind the last complete layer.

    Attributes:
        done: how many layers are complete.
        remembered: what the run keeps about them.

    Raises:
        ValueError: the file is of a run with another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        self._path = path
        self._identity: dict[str, Any] = json.loads(json.dumps(dict(identity), default=str))
        self.done = 0
        self.remembered: dict[str, Tensor] = {}
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            header = file.metadata()
            names = [name for name in file.keys() if name.startswith(REMEMBERED)]  # noqa: SIM118
            self.remembered = {name.removeprefix(REMEMBERED): file.get_tensor(name) for name in names}
        before = json.loads(header["identity"])
        for name in sorted(before.keys() | self._identity.keys()):
            if before.get(name) != self._identity.get(name):
                raise ValueError(
                    f"resume: expected the {name} of the interrupted run, {before.get(name)}, got "
                    f"{self._identity.get(name)}; use the same, or begin again with --force and without --resume"
                )
        self.done = int(header["done"])

    def streams(self, count: int, device: str) -> list[list[Tensor]]:
        """The hidden states of each stream by batch; [] before the first layer."""
        if not self.done or not count:
            return []
        with safe_open(self._path, "pt", device=device) as file:
            names = set(file.keys())
            return [
                [
                    file.get_tensor(f"{i}.{j}").clone()
                    for j in range(sum(n.startswith(f"{i}.") for n in names))
                ]
                for i in range(count)
            ]

    def write(self, done: int, streams: Sequence[Sequence[Tensor]]) -> None:
        """Replace the file.

        Raises:
            OSError: from writing.
        """
        tensors = {f"{i}.{j}": hidden for i, stream in enumerate(streams) for j, hidden in enumerate(stream)}
        tensors |= {REMEMBERED + name: tensor for name, tensor in self.remembered.items()}
        header = {"identity": json.dumps(self._identity), "done": str(done)}
        write_tensors({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, self._path, header)
        self.done = done


REMEMBERED = "remembered/"


def write_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a safetensors file, which appears complete or not at all.

    Raises:
        OSError: from writing, such as to a full disk.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, header)
        sync(partial)
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path.name}: could not be written: {error}") from error
