"""Tile by tile under a memory budget: the loop that every implementation of every estimator shares."""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from mikernels.pairs import Block
from mikernels.transforms import Variables

CPU_MEMORY_BUDGET = 2**30
"""Workspace in bytes beyond the inputs and the result; on a GPU half of the free memory takes its place."""


class Method(Protocol):
    """An estimator cut into pieces: panels are kept while they are of use, tiles are made one at a time."""

    tile: int
    """Variables along one side of a tile where memory allows it."""

    halvings: int
    """Of tiles on the diagonal, for a method that makes the whole of each tile."""

    def panel_bytes(self, n_samples: int) -> int:
        """Memory that one variable takes in a panel."""

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        """Memory that one tile needs while it is made."""

    def panel(self, variables: Variables, columns: slice) -> Any:
        """What a block of variables brings to every tile that it is part of."""

    def compute(self, left: Any, rows: slice, right: Any, cols: slice, *, upper: bool) -> Tensor:
        """Mutual information of some variables of one panel with some of another, `[rows, cols]` float32.

        `upper`: only what lies on or above the diagonal of the tile is wanted.
        """


def mi_blocks(
    method: Method, x: Variables, y: Variables | None, memory_budget: int | None
) -> Iterator[Block]:
    """Blocks of the matrix of `x` with `y`, or of its upper triangle where `y` is None.

    Raises:
        ValueError: `memory_budget` (bytes) does not hold the smallest tile.
    """
    others = x if y is None else y
    tile, panel_size = _fit(method, x, y, memory_budget)
    for left_columns in cut(len(x), panel_size):
        left = method.panel(x, left_columns)
        for right_columns in cut(len(others), panel_size):
            if y is None and right_columns.start < left_columns.start:
                continue
            same = y is None and right_columns == left_columns
            right = None  # the last one goes before the next one comes: two panels fit the budget
            right = left if same else method.panel(others, right_columns)
            n_rows = left_columns.stop - left_columns.start
            n_cols = right_columns.stop - right_columns.start
            for rows, cols in tiles(n_rows, n_cols, tile, upper=same, halvings=method.halvings):
                with torch.autocast(
                    x.data.device.type, enabled=False
                ):  # a caller's would halve the precision
                    mi = method.compute(left, rows, right, cols, upper=same and rows == cols)
                row, col = left_columns.start + rows.start, right_columns.start + cols.start
                yield Block(row, col, mi)


def _fit(method: Method, x: Variables, y: Variables | None, memory_budget: int | None) -> tuple[int, int]:
    """Variables along a tile and in a panel, such that a tile and two panels fit the budget and the device."""
    used = sum(v.data.nbytes for v in (x, y) if v is not None)
    largest = max(len(x), len(x if y is None else y))

    def tile_bytes(tile: int) -> int:
        return method.tile_bytes(tile, x.n_samples) + 2 * tile * method.panel_bytes(x.n_samples)

    device = x.data.device
    budget = default_budget(device) + used if memory_budget is None else memory_budget
    asked = 0
    while True:
        tile = min(method.tile, largest)
        while tile > 1 and used + tile_bytes(tile) > budget:
            tile //= 2
        if used + tile_bytes(tile) > budget:
            raise ValueError(
                f"memory_budget: expected at least {used + tile_bytes(tile)} bytes for this input, got {budget}"
            )
        free = budget - used - method.tile_bytes(tile, x.n_samples)
        panel_size = free // (2 * method.panel_bytes(x.n_samples)) // tile * tile
        panel_size = min(panel_size, -(-largest // tile) * tile)
        workspace = method.tile_bytes(tile, x.n_samples) + 2 * panel_size * method.panel_bytes(x.n_samples)
        if not may_run_out(device) or can_allocate(workspace, device):
            break
        asked = asked or workspace
        budget = used + workspace // 2
    if asked:
        warnings.warn(
            f"{device} has no {asked / 1e9:.2f} GB free: going on with chunks of {workspace / 1e9:.2f} GB",
            stacklevel=2,
        )
    return tile, panel_size


def may_run_out(device: torch.device) -> bool:
    """Whether memory is all there is when it is asked for; a CPU's is found page by page."""
    return device.type == "cuda"


def default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return CPU_MEMORY_BUDGET


def can_allocate(n_bytes: int, device: torch.device) -> bool:
    """Whether the memory is there now; the caching allocator keeps it for what comes next."""
    try:
        torch.empty(n_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return False
    return True


def cut(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `length`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def tiles(
    n_rows: int, n_cols: int, size: int, *, upper: bool, halvings: int = 0
) -> Iterator[tuple[slice, slice]]:
    """Tiles of a matrix, row by row; only those on or above the diagonal where `upper`.

    Tiles on the diagonal are halved so often, which leaves out all but `2^-halvings` of what lies below it.
    """
    for rows in cut(n_rows, size):
        for cols in cut(n_cols, size):
            if upper and rows == cols:
                yield from _triangle(rows, halvings)
            elif not upper or cols.start > rows.start:
                yield rows, cols


def _triangle(span: slice, halvings: int) -> Iterator[tuple[slice, slice]]:
    middle = (span.start + span.stop) // 2
    if halvings == 0 or middle == span.start:
        yield span, span
        return
    first, second = slice(span.start, middle), slice(middle, span.stop)
    yield from _triangle(first, halvings - 1)
    yield first, second
    yield from _triangle(second, halvings - 1)
