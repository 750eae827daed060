"""`renyi2` on a GPU: one matrix product over all pairs i < j of samples.

`J = sum_{i<j} (kx_ij ky_ij)^2` as in `mikernels.torch_impl.renyi2`. The triangle of pairs is folded into rows of
equal length: row r holds the M - 1 - r pairs (r, j > r) and the r pairs of sample M - 1 - r.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mikernels.options import Problem
from mikernels.transforms import Variables
from mikernels.triton_impl.gram import add_to, multiply_add, tile_of
from mikernels.triton_impl.launch import Launcher, padded

ROWS = 16
"""Folded rows in memory at once; constant, which fixes the order of the sums."""

FP8_SCALE = 256.0
"""Scales squared kernels, at most 1, to the range of fp8 (448)."""


@triton.jit
def renyi2_kernel(
    a,  # [n, K] squared kernels of the rows
    b,  # [k, K] squared kernels of the columns
    out,  # [n, stride_out] float32, sum over the pairs so far
    n_rows,
    n_cols,
    stride_out,
    n_inner,
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
    b_sum = tl.zeros([BM, BN], dtype=tl.float32)
    for o_k in range(0, n_inner, BK):
        b_sum = multiply_add(
            a, b, b_sum, i_m * BM, i_n * BN, o_k, n_rows, n_cols, n_inner, BK, TF32, FP32_EVERY
        )
    add_to(out, b_sum, i_m * BM, i_n * BN, n_rows, n_cols, stride_out)


@triton.jit
def squared_kernels_kernel(
    p_score,  # [n, M] float32, scaled so that k^2 = 2^-(difference^2)
    p_operand,  # [n, rows, stride]
    p_sum,  # [n, rows] float32, sums of the rounded operand
    n_samples,
    i_first,
    n_rows,
    stride,
    scale,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    p_score += i_n * n_samples
    o_i = tl.arange(0, BI)
    m_i = o_i < n_rows
    o_row = i_first + o_i  # at most (M - 1) / 2
    o_mirrored = n_samples - 1 - o_row
    b_last = tl.where(o_mirrored > o_row, o_row, 0)  # the middle row of an odd M must not count twice
    b_own = tl.load(p_score + o_row, m_i, 0.0)
    b_mirrored = tl.load(p_score + o_mirrored, m_i, 0.0)
    b_sums = tl.zeros([BI, BJ], dtype=tl.float32)
    for o_first in range(0, stride, BJ):
        o_j = o_first + tl.arange(0, BJ)
        m_own = (o_j[None, :] > o_row[:, None]) & (o_j[None, :] < n_samples)
        m_mirrored = (o_j[None, :] > 0) & (o_j[None, :] <= b_last[:, None])
        o_other = tl.where(m_own, o_j[None, :], n_samples - o_j[None, :])
        b_other = tl.load(p_score + o_other, (m_own | m_mirrored) & m_i[:, None], float("inf"))
        b_difference = tl.where(m_own, b_own[:, None], b_mirrored[:, None]) - b_other
        b_kernel = scale * tl.exp2(-b_difference * b_difference)  # 0 outside the masks
        b_kernel = b_kernel.to(p_operand.dtype.element_ty)
        b_sums += b_kernel.to(tl.float32)
        p_block = p_operand + (i_n * n_rows + o_i[:, None]) * stride + o_j[None, :]
        tl.store(p_block, b_kernel, m_i[:, None] & (o_j[None, :] < stride))
    tl.store(p_sum + i_n * n_rows + o_i, tl.sum(b_sums, 1), m_i)


class Renyi2:
    tile = 8192
    halvings = 0

    def __init__(self, problem: Problem, launcher: Launcher) -> None:
        self.problem = problem
        self.launcher = launcher
        self.scale = FP8_SCALE if launcher.precision == "fp8" else 1.0

    def panel_bytes(self, n_samples: int) -> int:
        return 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        operand = ROWS * (padded(n_samples) * self.launcher.dtype.itemsize + 4)
        return 2 * tile * operand + 8 * tile**2

    def panel(self, variables: Variables, columns: slice) -> Tensor:
        """Scores `[n, M]` float32, scaled so that `k^2 = 2^-(difference^2)`."""
        h = self.problem.bandwidth
        return variables.scores(columns, bandwidth=h) * (math.sqrt(math.log2(math.e)) / h)

    def compute(self, left: Tensor, rows: slice, right: Tensor, cols: slice, *, upper: bool) -> Tensor:
        x, y = left[rows], right[cols]
        n_samples = x.shape[1]
        n_folded = (n_samples + 1) // 2
        total = x.new_zeros(len(x), -(-len(y) // 4) * 4)  # a descriptor needs rows aligned to 16 bytes
        # sums over i < j of the rounded squared kernels
        sum_x, sum_y = (v.new_zeros(len(v), dtype=torch.float64) for v in (x, y))
        for first in range(0, n_folded, ROWS):
            n_rows = min(ROWS, n_folded - first)
            a = self._operand(x, first, n_rows, sum_x)
            b = a if upper else self._operand(y, first, n_rows, sum_y)
            self.launcher.run_tiles(
                renyi2_kernel,
                a,
                b,
                total,
                len(x),
                len(y),
                total.shape[1],
                a.shape[1],
                adds=True,
                UPPER=upper,
            )
        # log V / M = log(1 + 2 J / M) is near 0 for a narrow kernel
        log_joint = total[:, : len(y)].mul_(2 / (n_samples * self.scale**2)).log1p_()
        log_x = self._log_potential(sum_x, n_samples)
        log_y = log_x if upper else self._log_potential(sum_y, n_samples)
        return log_joint.sub_(log_x[:, None] - math.log(n_samples)).sub_(log_y)

    def _log_potential(self, pair_sum: Tensor, n_samples: int) -> Tensor:
        return (pair_sum * (2 / (n_samples * self.scale))).log1p().float()

    def _operand(self, scores: Tensor, first: int, n_rows: int, total: Tensor) -> Tensor:
        """`[n, n_rows * stride]`; adds the sums of its rows to `total [n]`."""
        operand, sums = self.launcher.rows_of_operand(
            squared_kernels_kernel, scores, first, n_rows, ROWS, self.scale
        )
        total += sums.sum(1, dtype=torch.float64)  # float64: torch's order depends on the shape
        return operand
