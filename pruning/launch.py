"""The processes that `torchrun` has started for one run of the command."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pruning.model.device import find_device

PATIENCE = timedelta(hours=2)
"""For a process that is slower than the others. One that has ended is noticed at once."""
SPOKEN = "mi-prune/spoken"
"""Counts the processes that have an error to show."""


class Launch:
    """What this process is to the run.

    Attributes:
        group: of all processes; None if there is only this one.
        is_first: whether this process shows what happens, and writes.
    """

    def __init__(self, group: Any = None, store: Any = None) -> None:
        self.group, self._store = group, store
        self.is_first = group is None or dist.get_rank(group) == 0

    def may_speak(self) -> bool:
        """Whether this process is the first one with an error to show: they all end with the same one."""
        if self._store is None:
            return True
        with suppress(RuntimeError):  # the store has ended with the first process
            return bool(self._store.add(SPOKEN, 1) == 1)
        return True


def is_one_of_several() -> bool:
    """Whether `torchrun` has started this process as one of several."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def launched(device: str | None) -> Iterator[Launch]:
    """Within the block the processes that `torchrun` has started are a group.

    Args:
        device: see `own_device`; GPUs exchange by NCCL, CPUs by gloo.

    Raises:
        ValueError: see `own_device`.
    """
    if not is_one_of_several():
        yield Launch()
        return
    own = torch.device(own_device(device) or "cpu")
    if own.type == "cuda":
        torch.cuda.set_device(own)
    store, rank, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        "nccl" if own.type == "cuda" else "gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE
    )
    yield Launch(dist.group.WORLD, store)
    dist.destroy_process_group()  # after an error the others may not be there any more: the process ends


def own_device(name: str | None) -> str | None:
    """The device of this process: of several on one machine, each has a GPU of its own.

    Args:
        name: as the user gave it; None for GPUs if there are some.

    Raises:
        ValueError: a device of one process only, or fewer GPUs than processes.
    """
    if not is_one_of_several() or name == "cpu" or (name is None and not torch.cuda.is_available()):
        return name
    index, count = (int(os.environ[f"LOCAL_{entry}"]) for entry in ("RANK", "WORLD_SIZE"))
    if name not in (None, "cuda") and count > 1:
        raise ValueError(f"--device: expected cpu or cuda for {count} processes on one machine, got {name!r}")
    if name in (None, "cuda"):
        gpus = torch.cuda.device_count()
        if gpus < count:
            raise ValueError(
                f"--nproc-per-node: expected at most {gpus} processes for the {gpus} GPUs of this machine, got {count}; "
                f"use fewer, or --device cpu"
            )
        name = f"cuda:{index}"
    return find_device(name)
