"""The estimators as matrix products in plain torch, tile by tile under a memory budget, on any device."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from mikernels.pairs import Block
from mikernels.problem import Problem
from mikernels.torch_impl.tiles import cut, tiles
from mikernels.transforms import Variables


class Method(Protocol):
    """An estimator cut into pieces: panels are kept while they are of use, tiles are made one at a time."""

    tile: int
    """Variables along one side of a tile where memory allows it."""

    def panel_bytes(self, n_samples: int) -> int:
        """Memory that one variable takes in a panel."""

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        """Memory that one tile needs while it is made."""

    def panel(self, variables: Variables, columns: slice) -> Any:
        """What a block of variables brings to every tile that it is part of."""

    def compute(self, left: Any, rows: slice, right: Any, cols: slice) -> Tensor:
        """Mutual information of some variables of one panel with some of another, `[rows, cols]` float32."""


def mi_blocks(
    x: Variables, y: Variables | None, problem: Problem, precision: str, memory_budget: int
) -> Iterator[Block]:
    """Blocks of the matrix of `x` with `y`, or of its upper triangle where `y` is None.

    Raises:
        ValueError: `memory_budget` (bytes) does not hold the smallest tile.
    """
    method = _method(problem, precision)
    others = x if y is None else y
    n_samples = x.n_samples
    used = sum(v.data.nbytes for v in (x, y) if v is not None)

    def needed(tile: int) -> int:
        return used + method.tile_bytes(tile, n_samples) + 2 * tile * method.panel_bytes(n_samples)

    tile = min(method.tile, max(len(x), len(others)))
    while tile > 1 and needed(tile) > memory_budget:
        tile //= 2
    if needed(tile) > memory_budget:
        raise ValueError(
            f"memory_budget: expected at least {needed(tile)} bytes for this input, got {memory_budget}"
        )
    free = memory_budget - used - method.tile_bytes(tile, n_samples)
    panel_size = free // (2 * method.panel_bytes(n_samples)) // tile * tile
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
            for rows, cols in tiles(n_rows, n_cols, tile, upper=same):
                with torch.autocast(
                    x.data.device.type, enabled=False
                ):  # a caller's would halve the precision
                    mi = method.compute(left, rows, right, cols)
                row, col = left_columns.start + rows.start, right_columns.start + cols.start
                mi.masked_fill_(x.constant[row : row + mi.shape[0], None], 0.0)
                mi.masked_fill_(others.constant[col : col + mi.shape[1]], 0.0)
                yield Block(row, col, mi)


def _method(problem: Problem, precision: str) -> Method:
    from mikernels.torch_impl.adaptive import Adaptive
    from mikernels.torch_impl.grid import Grid
    from mikernels.torch_impl.kde import Kde
    from mikernels.torch_impl.renyi2 import Renyi2

    if problem.estimator == "grid":
        return Grid(problem, integers=precision == "int8")
    if problem.estimator == "adaptive":
        return Adaptive()
    methods: dict[str, Callable[[Problem], Method]] = {"kde": Kde, "renyi2": Renyi2}
    return methods[problem.estimator](problem)
