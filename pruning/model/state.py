"""What a run that writes layer by layer needs to go on after it was killed: one file, replaced after each layer.

Of several processes each one writes its hidden states to a file of its own, so that they write at the same time and
nothing travels. The layer counts as complete once the first process has then replaced the file of the run.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mikernels.ranks import ALONE, Ranks
from mikernels.written import complete_file
from pruning.model.layers import Keep
from pruning.model.output_folder import share_of

STATE = "unfinished.state"


class State:
    """The state behind the last complete layer.

    Attributes:
        done: how many layers are complete.
        remembered: what the run keeps about them.

    Raises:
        ValueError: the file is of a run with another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, object], ranks: Ranks = ALONE) -> None:
        self._path, self._ranks = path, ranks
        self._identity: dict[str, Any] = json.loads(json.dumps(dict(identity), default=str))
        self.done = 0
        self.remembered: dict[str, Tensor] = {}
        self.done, self.remembered = ranks.from_first(self._read)
        if not self.done:
            shutil.rmtree(share_of(path.parent, ranks.index), ignore_errors=True)

    def _read(self) -> tuple[int, dict[str, Tensor]]:
        if not self._path.is_file():
            return 0, {}
        with safe_open(self._path, "pt") as file:
            header = file.metadata()
            names = [name for name in file.keys() if name.startswith(REMEMBERED)]  # noqa: SIM118
            remembered = {name.removeprefix(REMEMBERED): file.get_tensor(name) for name in names}
        before = json.loads(header["identity"])
        for name in sorted(before.keys() | self._identity.keys()):
            if before.get(name) != self._identity.get(name):
                raise ValueError(
                    f"resume: expected the {name} of the interrupted run, {before.get(name)}, got "
                    f"{self._identity.get(name)}; use the same, or begin again with --force and without --resume"
                )
        return int(header["done"]), remembered

    def _hidden(self, done: int) -> Path:
        """The file with the hidden states behind a layer. Of several processes, that behind the layer before is kept
        until all have written theirs and the first one has replaced the file of the run."""
        if self._ranks.count == 1:
            return self._path
        return share_of(self._path.parent, self._ranks.index) / f"{done % 2}.state"

    def streams(self, count: int, device: str, keep: Keep) -> list[list[Tensor]]:
        """The hidden states of each stream by batch; [] before the first layer.

        Raises:
            FileNotFoundError: this process has no file.
        """
        if not self.done or not count:
            return []
        path = self._hidden(self.done)
        if not path.is_file():
            raise FileNotFoundError(
                f"resume: expected the hidden states of this process in {path}, got no such file; start each process "
                f"on the machine where it ran before, or begin again with --force and without --resume"
            )
        with safe_open(path, "pt", device=device) as file:
            names = set(file.keys())
            return [
                [
                    keep(file.get_tensor(f"{i}.{j}").clone())
                    for j in range(sum(n.startswith(f"{i}.") for n in names))
                ]
                for i in range(count)
            ]

    def write(self, done: int, streams: Sequence[Sequence[Tensor]]) -> None:
        """Replace the file.

        Raises:
            OSError: from writing.
        """
        hidden = {f"{i}.{j}": states for i, stream in enumerate(streams) for j, states in enumerate(stream)}
        remembered = {REMEMBERED + name: tensor for name, tensor in self.remembered.items()}
        header = {"identity": json.dumps(self._identity), "done": str(done)}
        if self._ranks.count > 1 and hidden:
            path = self._hidden(done)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(_on_cpu(hidden), path, header)
            hidden = {}
            self._ranks.wait()
        if self._ranks.is_first:
            write_tensors(_on_cpu(hidden | remembered), self._path, header)
        self._ranks.wait()
        self.done = done


REMEMBERED = "remembered/"


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a safetensors file, which appears complete or not at all.

    Raises:
        OSError: from writing, such as to a full disk.
    """
    try:
        with complete_file(path) as partial:
            save_file(tensors, partial, header)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path.name}: could not be written: {error}") from error
