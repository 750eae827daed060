"""The processes that `torchrun` starts for one run of the command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mikernels.terminal import ends_in_order
from pruning.model.device import find_device

PATIENCE = timedelta(hours=2)
"""For a process that is slower than the others. One that has ended is noticed at once."""


class Launch:
    """What this process is to the run.

    Attributes:
        is_first: whether this process shows what happens, and writes.
        group: of all processes; None outside of `joined`, and where there is only this one.
    """

    def __init__(self) -> None:
        started = dist.is_available() and dist.is_torchelastic_launched()
        self._count = int(os.environ["WORLD_SIZE"]) if started else 1
        self.is_first = self._count == 1 or os.environ["RANK"] == "0"
        self.group: Any = None
        self._store: Any = None

    @contextmanager
    def joined(self, device: str | None) -> Iterator[str]:
        """Within the block the processes are a group, which exchanges by NCCL on GPUs and by gloo on CPUs.

        Args:
            device: as the user named it; None for GPUs if there are some.

        Yields:
            The device of this process.

        Raises:
            ValueError: see `own_device`.
        """
        if self._count == 1:
            with ends_in_order():  # torchrun ends several at once
                yield find_device(device)
            return
        self._store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        own = own_device(device)
        if own.startswith("cuda"):
            torch.cuda.set_device(own)
        backend = "nccl" if own.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=self._store, rank=rank, world_size=count, timeout=PATIENCE)
        self.group = dist.group.WORLD
        yield own
        dist.destroy_process_group()  # not after an error: others may have ended already

    def may_speak(self) -> bool:
        """Whether this is the first process that asks: an error of one ends all, and is shown once."""
        if self._store is None:
            return self.is_first
        with suppress(RuntimeError):  # the store has ended
            return bool(self._store.add("mi-prune/spoken", 1) == 1)
        return True


def own_device(name: str | None) -> str:
    """The device of this process, of several that `torchrun` has started: each has a GPU of its own.

    Args:
        name: as the user named it; None for GPUs if there are some.

    Raises:
        ValueError: a device of one process only, or fewer GPUs than processes.
    """
    index, count = (int(os.environ[f"LOCAL_{entry}"]) for entry in ("RANK", "WORLD_SIZE"))
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return "cpu"
    if name not in (None, "cuda"):
        if count > 1:
            raise ValueError(
                f"--device: expected cpu or cuda for {count} processes on one machine, got {name!r}"
            )
        return find_device(name)
    gpus = torch.cuda.device_count()
    if gpus < count:
        raise ValueError(
            f"--nproc-per-node: expected at most the {gpus} GPUs of this machine, got {count} processes; use fewer, or "
            f"--device cpu"
        )
    return find_device(f"cuda:{index}")
