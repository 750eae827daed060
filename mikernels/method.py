"""What an implementation of an estimator provides, and the loop that runs it tile by tile."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from mikernels.memory import Needs, fit_pieces
from mikernels.pairs import Block
from mikernels.ranks import ALONE, Ranks
from mikernels.tiling import cut, tiles
from mikernels.transforms import Variables


class Method(Protocol):
    """An estimator in pieces: panels are kept while they are needed, tiles are computed one at a time."""

    tile: int
    """Variables along one side of a tile, if memory allows."""

    halvings: int
    """How often tiles on the diagonal are halved, for a method that computes the whole of each tile."""

    def panel_bytes(self, n_samples: int) -> int:
        """Memory for one variable of a panel."""

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        """Memory for one tile while it is computed."""

    def panel(self, variables: Variables, columns: slice) -> Any:
        """What some variables contribute to every tile that they are part of."""

    def compute(self, left: Any, rows: slice, right: Any, cols: slice, *, upper: bool) -> Tensor:
        """Mutual information of variables of one panel with variables of another, `[rows, cols]` float32.

        `upper`: only what lies on or above the diagonal of the tile is needed.
        """


def needs_of(method: Method, n_samples: int, n_variables: int, inputs: int) -> Needs:
    """What a method needs memory for, with so many variables in the larger input and bytes of transformed inputs."""
    return Needs(
        tile=method.tile,
        n_variables=n_variables,
        tile_bytes=lambda size: method.tile_bytes(size, n_samples),
        panel_bytes=method.panel_bytes(n_samples),
        inputs=inputs,
    )


def run_tiles(
    method: Method,
    x: Variables,
    y: Variables | None,
    memory_budget: int | None,
    ranks: Ranks = ALONE,
) -> Iterator[Block]:
    """Compute the matrix of `x` with `y` block by block, or its upper triangle without `y`.

    Args:
        ranks: processes that share out the blocks, which are cut as on one process.

    Raises:
        WorkspaceError: `memory_budget` (bytes) does not hold the smallest tile.
    """
    others = x if y is None else y
    inputs = sum(v.data.nbytes for v in (x, y) if v is not None)
    needs = needs_of(method, x.n_samples, max(len(x), len(others)), inputs)
    tile, panel_size = fit_pieces(needs, memory_budget, x.data.device)
    tile, panel_size = ranks.least(tile, panel_size)  # a device with less free memory decides for all
    panel_size = panel_size // tile * tile
    number = 0
    for left_columns in cut(len(x), panel_size):
        left = method.panel(x, left_columns)
        for right_columns in cut(len(others), panel_size):
            if y is None and right_columns.start < left_columns.start:
                continue
            same = y is None and right_columns == left_columns
            right = None  # free the last panel before the next one is made: the budget holds two
            right = left if same else method.panel(others, right_columns)
            n_rows = left_columns.stop - left_columns.start
            n_cols = right_columns.stop - right_columns.start
            for rows, cols in tiles(n_rows, n_cols, tile, upper=same, halvings=method.halvings):
                number += 1
                if number % ranks.count != ranks.index:
                    continue
                # A caller's autocast would halve the precision.
                with torch.autocast(x.data.device.type, enabled=False):
                    mi = method.compute(left, rows, right, cols, upper=same and rows == cols)
                yield Block(left_columns.start + rows.start, right_columns.start + cols.start, mi)
