"""How many bytes on the device the hidden states of all tokens may take; what exceeds it waits elsewhere.

A run needs those of one batch at a time, so that the others may be on the CPU, or in a file if the model is there.
"""

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class MemoryBudget:
    """Keeps tensors for later: on their device while they fit, otherwise on the CPU, or from there in a file.

    The files lose their names before they are written, and end with their tensors, or with the process.
    """

    def __init__(self, n_bytes: int | None = None, folder: Path | None = None) -> None:
        """Args:
        n_bytes: that may be kept on the device at a time; None for no limit.
        folder: for the files; by default that for temporary files.
        """
        self._left, self._folder = n_bytes, folder
        self._device = torch.device("cpu")  # until a tensor comes from elsewhere

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, or an equal one elsewhere."""
        return self.join([tensor])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all parts in one tensor, on their device or elsewhere.

        Raises:
            OSError: the file cannot be written, such as to a full disk.
        """
        if self._left is None:
            return parts[0] if len(parts) == 1 else torch.cat(list(parts))
        n_bytes = sum(part.numel() * part.element_size() for part in parts)
        self._device = next((part.device for part in parts if part.device.type != "cpu"), self._device)
        if n_bytes <= self._left:
            kept = parts[0] if len(parts) == 1 else torch.cat([part.to(self._device) for part in parts])
            self._left -= n_bytes
            weakref.finalize(kept, self._give_back, n_bytes).atexit = False
            return kept
        if self._device.type != "cpu":  # then some of them may wait on the CPU already
            return torch.cat([part.detach().cpu() for part in parts])
        return self._in_file(parts)

    def _give_back(self, n_bytes: int) -> None:
        assert self._left is not None  # noqa: S101, for the type checker
        self._left += n_bytes

    def _in_file(self, parts: Sequence[Tensor]) -> Tensor:
        first = parts[0]
        shape = (sum(len(part) for part in parts), *first.shape[1:])
        try:
            with tempfile.NamedTemporaryFile(
                prefix=".hidden-states.", dir=self._folder, buffering=0, delete=False
            ) as file:
                try:
                    size = torch.Size(shape).numel()
                    kept = torch.from_file(file.name, shared=True, size=size, dtype=first.dtype)
                finally:  # before anything is written, so that a kill leaves nothing
                    os.unlink(file.name)
                for part in parts:  # not through the mapping: there a full disk would end the process
                    values = part.detach().contiguous().flatten().view(torch.uint8).numpy().data
                    while values:  # one call writes at most 2 GiB
                        values = values[file.write(values) :]
                return kept.view(shape)
        except (OSError, RuntimeError) as error:  # torch raises the latter
            folder = self._folder or tempfile.gettempdir()
            raise OSError(
                f"memory_budget: expected room in {folder} for the hidden states that exceed it, got: {error}; make "
                f"room, name another folder in TMPDIR if it is that for temporary files, or raise the budget"
            ) from error


NO_LIMIT = MemoryBudget()
