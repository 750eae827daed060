"""How much workspace a computation may use, and the largest pieces that fit."""

import warnings
from collections.abc import Callable

import torch

CPU_MEMORY_BUDGET = 2**30
"""Bytes of workspace beyond inputs and result. On a GPU it is half of the memory that is free or held unused by
torch."""


def fit_pieces(
    *,
    tile: int,
    n_variables: int,
    tile_bytes: Callable[[int], int],
    panel_bytes: int,
    used: int,
    memory_budget: int | None,
    device: torch.device,
) -> tuple[int, int]:
    """Variables along a tile and in a panel, such that a tile and two panels fit the budget and the device.

    Args:
        tile: variables along one side of a tile, if memory allows.
        n_variables: of the larger input.
        tile_bytes: memory for a tile of a size while it is computed.
        panel_bytes: memory for one variable of a panel.
        used: bytes of the transformed inputs, which count against the budget.
        memory_budget: bytes; None for the default of the device.

    Raises:
        ValueError: the budget does not hold the smallest tile.
    """

    def least_bytes(size: int) -> int:
        return tile_bytes(size) + 2 * size * panel_bytes

    budget = default_budget(device) + used if memory_budget is None else memory_budget
    refused = 0
    while True:
        size = min(tile, n_variables)
        while size > 1 and used + least_bytes(size) > budget:
            size //= 2
        if used + least_bytes(size) > budget:
            raise ValueError(
                f"memory_budget: expected at least {used + least_bytes(size)} bytes for this input, got {budget}"
            )
        panel_size = (budget - used - tile_bytes(size)) // (2 * panel_bytes) // size * size
        panel_size = min(panel_size, -(-n_variables // size) * size)
        workspace = tile_bytes(size) + 2 * panel_size * panel_bytes
        if not allocates_eagerly(device) or can_allocate(workspace, device):
            break
        refused = refused or workspace
        budget = used + workspace // 2
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
