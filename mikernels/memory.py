"""How much workspace a computation may use, and the largest pieces that fit."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mikernels.errors import WorkspaceError

CPU_MEMORY_BUDGET = 2**30
"""Bytes of workspace beyond inputs and result. On a GPU it is half of the memory that is free or held unused by
torch."""


class Workspace(NamedTuple):
    """Bytes of memory beyond inputs and result.

    Attributes:
        least: what the smallest pieces take: the smallest `memory_budget` that is accepted.
        used: what the pieces take that the options give.
    """

    least: int
    used: int


@dataclass(frozen=True)
class Needs:
    """What a computation in pieces needs memory for.

    Attributes:
        tile: variables along one side of a tile, if memory allows.
        n_variables: of the larger input.
        tile_bytes: memory for a tile of a size while it is computed.
        panel_bytes: memory for one variable of a panel.
        inputs: bytes of the transformed inputs.
    """

    tile: int
    n_variables: int
    tile_bytes: Callable[[int], int]
    panel_bytes: int
    inputs: int

    def workspace(self, size: int, panel_size: int) -> int:
        """Bytes for the inputs, a tile of a size and two panels."""
        return self.inputs + self.tile_bytes(size) + 2 * panel_size * self.panel_bytes

    def pieces(self, budget: int) -> tuple[int, int]:
        """The most variables along a tile and in a panel that `budget` bytes hold.

        Raises:
            WorkspaceError: it does not hold the smallest tile.
        """
        size = min(self.tile, self.n_variables)
        while size > 1 and self.workspace(size, size) > budget:
            size //= 2
        if (least := self.workspace(size, size)) > budget:
            raise WorkspaceError(
                f"memory_budget: expected at least {least} bytes for this input, got {budget}"
            )
        panel_size = (budget - self.inputs - self.tile_bytes(size)) // (2 * self.panel_bytes) // size * size
        return size, min(panel_size, -(-self.n_variables // size) * size)

    def budget(self, memory_budget: int | None, device: torch.device) -> int:
        """Bytes that all may take; None for the default of the device, which leaves the inputs aside."""
        return default_budget(device) + self.inputs if memory_budget is None else memory_budget


def fit_pieces(needs: Needs, memory_budget: int | None, device: torch.device) -> tuple[int, int]:
    """Variables along a tile and in a panel, such that a tile and two panels fit the budget and the device.

    Raises:
        WorkspaceError: the budget does not hold the smallest tile.
    """
    budget, refused = needs.budget(memory_budget, device), 0
    while True:
        size, panel_size = needs.pieces(budget)
        workspace = needs.workspace(size, panel_size) - needs.inputs
        if not allocates_eagerly(device) or can_allocate(workspace, device):
            break
        refused = refused or workspace
        budget = needs.inputs + workspace // 2
    if refused:
        warnings.warn(
            f"memory_budget: {refused / 1e9:.2f} GB are not free on {device}; using chunks of "
            f"{workspace / 1e9:.2f} GB",
            stacklevel=2,
        )
    return size, panel_size


def allocates_eagerly(device: torch.device) -> bool:
    """Whether an allocation takes its memory at once. A CPU's pages are taken when they are first written."""
    return device.type == "cuda"


def default_budget(device: torch.device) -> int:
    """Bytes of workspace that a computation may use on a device unless the caller says otherwise."""
    if device.type == "cuda":
        # What torch's allocator keeps for later.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) // 2
    return CPU_MEMORY_BUDGET


def can_allocate(n_bytes: int, device: torch.device) -> bool:
    """Whether so much memory is free now; the caching allocator keeps it for what comes next."""
    try:
        torch.empty(n_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return False
    return True
