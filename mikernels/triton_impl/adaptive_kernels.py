"""`adaptive` on a GPU: one exact product for the joint counts, then one program per pair for its ladder.

Features are one-hot cells `[n * G, M]` of 8-bit integers, gathered by rank from one table, so a tile of their
product holds whole tables of counts. These pass through memory once: 16 KB per pair at G = 64. A ladder program
keeps its table in registers. On every rung, `f = K counts K` takes two small products, and the program stores

    V = 1/M sum_ab counts_ab 1/2 log [ ((f_ab - 3/2)^2 + 1/12) exp(-2 c) ]   (log ratio, nats)

The margin c of `mikernels.tables.rungs.Rung` is inside the logarithm, which keeps the terms and their rounding
errors small. Torch code continues from these few numbers per pair, and refines the few pairs that need finer cells.
Every pair gets the ladder of 64 cells, of which that of 32 is the rest: products are cheap here, and pairs that
have to be counted again are not.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mikernels.adaptive.extrapolation import extrapolate
from mikernels.adaptive.histograms import Cells, estimate_pairs, finest_cells
from mikernels.adaptive.refinement import limits, refine, refinement_bytes, takeover
from mikernels.caches import cached
from mikernels.tables.rungs import BANDWIDTHS, CELLS, COARSEST, Rung, cell_of_rank, rungs
from mikernels.transforms import Variables
from mikernels.triton_impl.gather import gather_kernel
from mikernels.triton_impl.gram import multiply_add, tile_of
from mikernels.triton_impl.launch import Launcher, padded
from mikernels.triton_impl.log2 import log2

TABLE_CELLS = CELLS[1]
"""Cells along a side of the count tables; the ladder of `CELLS[0]` is the rest of theirs."""
LADDER_WARPS = 4
LADDER_COLUMNS = {"sm_80": 16}
"""Columns of the finest table to smooth at a time, on chips whose registers cannot hold them all."""
SMALLEST_PRODUCT = 16
"""Smallest side of a tensor-core product; coarser tables are padded with zeros."""


@triton.jit
def counts_kernel(
    a,  # [n * G, K] one-hot cells of the rows
    b,  # [k * G, K] one-hot cells of the columns
    p_out,  # [n * G, k * G] int32
    n_rows,
    n_cols,
    n_inner,  # K, the samples and padding
    UPPER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    TF32: tl.constexpr,
    FP32_EVERY: tl.constexpr,
):
    i_m, i_n = tile_of(tl.program_id(0), tl.cdiv(n_rows, BM), tl.cdiv(n_cols, BN), GROUP)
    if UPPER and (i_n + 1) * BN <= i_m * BM:
        return
    b_counts = tl.zeros([BM, BN], dtype=tl.int32)
    for o_k in range(0, n_inner, BK):
        b_counts = multiply_add(
            a, b, b_counts, i_m * BM, i_n * BN, o_k, n_rows, n_cols, n_inner, BK, TF32, FP32_EVERY
        )
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    # Within a tile, offsets fit 32 bits, which take half the registers.
    p_out += (i_m * BM).to(tl.int64) * n_cols + i_n * BN
    m_row, m_col = o_m[:, None] < n_rows - i_m * BM, o_n[None, :] < n_cols - i_n * BN
    tl.store(p_out + (o_m[:, None] * n_cols + o_n[None, :]), b_counts, m_row & m_col)


@triton.jit
def ladder_kernel(
    p_counts,  # [n, G, k, G] int32
    p_kernel,  # [2, G, G] float32, K of the two bandwidths; its corners are those of fewer cells
    p_scale,  # [rungs] float32, exp(-2 c)
    p_out,  # [rungs, n, k] float32, V
    n_rows,
    n_cols,
    factor,  # log(2) / 2 M
    UPPER: tl.constexpr,
    G: tl.constexpr,
    HALVINGS: tl.constexpr,
    BC: tl.constexpr,  # columns of the finest table to smooth at a time
    SMALLEST: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    CHIP: tl.constexpr,
):
    i_n = tl.program_id(0) // n_cols
    i_k = tl.program_id(0) % n_cols
    if UPPER and i_k < i_n:
        return
    o_g = tl.arange(0, G)
    p_counts += (i_n * G).to(tl.int64) * n_cols * G + i_k * G
    b_counts = tl.load(p_counts + (o_g[:, None] * n_cols * G + o_g[None, :])).to(tl.float32)
    for i_halving in tl.static_range(HALVINGS + 1):
        if i_halving > 0:
            b_counts = coarser(b_counts, SMALLEST, DOT_PRECISION)
        o_c = tl.arange(0, b_counts.shape[0])
        for i_h in tl.static_range(2):
            i_rung = 2 * i_halving + i_h
            scale = tl.load(p_scale + i_rung)
            b_kernel = tl.load(p_kernel + i_h * G * G + o_c[:, None] * G + o_c[None, :])
            if i_halving == 0 and BC < G:
                total = 0.0
                for o_first in range(0, G, BC):
                    o_b = o_first + tl.arange(0, BC)
                    b_columns = tl.load(p_kernel + i_h * G * G + o_g[:, None] * G + o_b[None, :])
                    b_half = tl.dot(b_counts, b_columns, input_precision=DOT_PRECISION)
                    b_f = tl.dot(b_kernel, b_half, input_precision=DOT_PRECISION)
                    b_part = tl.load(p_counts + (o_g[:, None] * n_cols * G + o_b[None, :])).to(tl.float32)
                    total += log_ratio(b_part, b_f, scale, CHIP)
            else:  # K on the right of both products needs no transpose
                b_half = tl.dot(b_counts, b_kernel, input_precision=DOT_PRECISION)
                b_f = tl.dot(b_half.T, b_kernel, input_precision=DOT_PRECISION)
                total = log_ratio(b_counts.T, b_f, scale, CHIP)
            p_value = p_out + (i_rung * n_rows + i_n).to(tl.int64) * n_cols + i_k
            tl.store(p_value, total * factor)


@triton.jit
def log_ratio(b_counts, b_f, scale, CHIP: tl.constexpr):
    """Sum of `counts log2 [((f - 3/2)^2 + 1/12) scale]`."""
    b_f -= 1.5
    return tl.sum(b_counts * log2((b_f * b_f + 1 / 12) * scale, CHIP))


@triton.jit
def coarser(b_counts, SMALLEST: tl.constexpr, DOT_PRECISION: tl.constexpr):
    """Sums of 2 x 2 cells: a table of half the side, or a corner of one of the smallest side."""
    C: tl.constexpr = b_counts.shape[0]
    if C > SMALLEST:
        b_sums = tl.sum(tl.sum(b_counts.reshape(C // 2, 2, C // 2, 2), 3), 1)
    else:
        o_c = tl.arange(0, C)
        b_pairs = (o_c[:, None] // 2 == o_c[None, :]).to(tl.float32)
        b_half = tl.dot(b_counts, b_pairs, input_precision=DOT_PRECISION)
        b_sums = tl.dot(b_half.T, b_pairs, input_precision=DOT_PRECISION).T
    return b_sums


class RankedCells(NamedTuple):
    cells: Cells
    features: Tensor  # [n * G, K] int8, one-hot cells


class LadderTables(NamedTuple):
    one_hot: Tensor  # [M, G] int8
    kernel: Tensor  # [2, G, G] float32
    scale: Tensor  # [rungs] float32


class Adaptive:
    tile = 128
    halvings = 0

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def panel_bytes(self, n_samples: int) -> int:
        return TABLE_CELLS * padded(n_samples) + 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        counts = 4 * (tile * TABLE_CELLS) ** 2
        ladder = 64 * 2 * len(rungs(n_samples, TABLE_CELLS)) * tile**2
        return max(counts + ladder, refinement_bytes(tile, _strip(tile, tile), n_samples))

    def panel(self, variables: Variables, columns: slice) -> RankedCells:
        ranks, n_samples = variables.data[columns], variables.n_samples
        if variables.atoms is not None:  # counted by torch (`compute`)
            ranks = ranks.clamp(min=0)
        n_inner = padded(n_samples)
        features = ranks.new_empty(len(ranks) * TABLE_CELLS, n_inner, dtype=torch.int8)
        block_t = 64
        self.launcher.run(
            gather_kernel,
            (len(ranks) * triton.cdiv(n_inner, block_t),),
            ranks,
            _tables(n_samples, ranks.device).one_hot,
            features,
            n_samples,
            n_inner,
            W=TABLE_CELLS,
            BT=block_t,
        )
        return RankedCells(finest_cells(variables, columns), features)

    def compute(
        self, left: RankedCells, rows: slice, right: RankedCells, cols: slice, *, upper: bool
    ) -> Tensor:
        x, y = left.cells.rows(rows), right.cells.rows(cols)
        n_samples = x.finest.shape[1]
        ladder = rungs(n_samples, TABLE_CELLS)
        ratios = self._log_ratios(left, rows, right, cols, ladder, upper)
        coarser_from = len(BANDWIDTHS)  # the first rung with half the cells
        values = extrapolate(ratios[coarser_from:], ladder[coarser_from:], n_samples)
        fine = extrapolate(ratios, ladder, n_samples)
        values = values.lerp(fine, takeover(values, limits(n_samples)[0]))
        strip = _strip(*values.shape)
        if x.atoms is None and y.atoms is None:
            refine(values, x, y, CELLS[2:], strip=strip, upper=upper)
            return values
        # Pairs with atoms have tables of another size, which torch counts and smooths.
        tied_x, tied_y = (
            v.tied(torch.arange(n, device=values.device)) for v, n in zip((x, y), values.shape, strict=True)
        )
        tied = tied_x[:, None] | tied_y
        row, col = (tied.triu() if upper else tied).nonzero().unbind(1)
        others = torch.full_like(values, -math.inf)
        others[row, col] = estimate_pairs(x, y, row, col, CELLS[0], strip=strip).to(values.dtype)
        values.masked_fill_(tied, -math.inf)
        refine(values, x, y, CELLS[2:], strip=strip, upper=upper)
        refine(others, x, y, CELLS[1:], strip=strip, upper=upper)
        return torch.where(tied, others, values)

    def _log_ratios(
        self,
        left: RankedCells,
        rows: slice,
        right: RankedCells,
        cols: slice,
        ladder: tuple[Rung, ...],
        upper: bool,
    ) -> Tensor:
        """V on every rung, `[rungs, n, k]` nats; undefined below the diagonal if `upper`."""
        g = TABLE_CELLS
        a = left.features[rows.start * g : rows.stop * g]
        b = right.features[cols.start * g : cols.stop * g]
        n, k, n_samples = len(a) // g, len(b) // g, left.cells.finest.shape[1]
        counts = a.new_empty(len(a), len(b), dtype=torch.int32)
        self.launcher.run_tiles(
            counts_kernel, a, b, counts, len(a), len(b), a.shape[1], adds=False, UPPER=upper
        )
        tables = _tables(n_samples, a.device)
        ratios = a.new_empty(len(ladder), n, k, dtype=torch.float32)
        self.launcher.run(
            ladder_kernel,
            (n * k,),
            counts,
            tables.kernel,
            tables.scale,
            ratios,
            n,
            k,
            math.log(2) / (2 * n_samples),
            UPPER=upper,
            G=g,
            HALVINGS=int(math.log2(g // COARSEST)),
            BC=LADDER_COLUMNS.get(self.launcher.chip, g),
            SMALLEST=SMALLEST_PRODUCT,
            DOT_PRECISION=dot_precision(self.launcher.chip),
            CHIP=self.launcher.chip,
            num_warps=LADDER_WARPS,
        )
        return ratios


def dot_precision(chip: str) -> str:
    """Three 11-bit products on NVIDIA's tensor cores; AMD's multiply float32 directly."""
    return "ieee" if chip == "gfx942" else "tf32x3"


def _strip(n: int, k: int) -> int:
    """Joint cells to refine at once, such that they fit the memory of the tile's counts, which is free by then."""
    return n * k * TABLE_CELLS**2 // 10


@cached(maxsize=8)
def _tables(n_samples: int, device: torch.device) -> LadderTables:
    ladder = rungs(n_samples, TABLE_CELLS)
    one_hot = torch.eye(TABLE_CELLS, dtype=torch.int8)[cell_of_rank(n_samples, TABLE_CELLS)]
    kernel = torch.stack([rung.kernel for rung in ladder[:2]]).float()
    scale = torch.tensor([math.exp(-2 * rung.margin) for rung in ladder])
    return LadderTables(one_hot.to(device), kernel.to(device), scale.to(device))
