"""`adaptive` from joint histograms, with the ladder of many pairs at a time as matrix products.

Work for a pair at G = 32 cells: M increments, which take a CPU less time than a product of one-hot operands
(`benchmarks/speed/counts.py`), 0.3 MFLOP, and 2,700 logarithms. Pairs above 0.1 nats are computed again on finer cells.
"""

import torch
from torch import Tensor

from mikernels.adaptive.histograms import Cells, estimate_pairs, finest_cells
from mikernels.adaptive.refinement import refine, refinement_bytes
from mikernels.tables.rungs import CELLS
from mikernels.transforms import Variables

STRIP = 2**20
"""Joint cells and samples to hold at once: about the size of the cache, and enough work for all threads."""


class Adaptive:
    tile = 128
    halvings = 0

    def panel_bytes(self, n_samples: int) -> int:
        return 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 1024 * tile**2 + refinement_bytes(tile, STRIP, n_samples)

    def panel(self, variables: Variables, columns: slice) -> Cells:
        return finest_cells(variables, columns)

    def compute(self, left: Cells, rows: slice, right: Cells, cols: slice, *, upper: bool) -> Tensor:
        x, y = left.rows(rows), right.rows(cols)
        wanted = torch.ones(len(x.finest), len(y.finest), dtype=torch.bool, device=x.finest.device)
        row, col = (wanted.triu_() if upper else wanted).nonzero().unbind(1)
        values = torch.zeros(wanted.shape, dtype=torch.float64, device=wanted.device)
        values[row, col] = estimate_pairs(x, y, row, col, CELLS[0], strip=STRIP)
        refine(values, x, y, CELLS[1:], strip=STRIP, upper=upper)
        return values.float()
