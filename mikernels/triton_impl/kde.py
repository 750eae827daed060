"""`kde` on a GPU: M matrix products, a few of which are multiplied with each other before a logarithm is taken.

Operands are `a_n[i, j] = k(x_n[i] - x_n[j]) sqrt(M) / sum_j k(x_n[i] - x_n[j])`, which include the margins:
`I = 1/M sum_i log s_i` with `s_i = sum_j a_ij b_ij`. Memory holds the operands of a few samples i at a time,
`[n, i, j]`. One program computes one tile of pairs: it loops over (i, j), multiplies the product of the ratios by s_i
after the last j of each i, and adds the logarithm of the product to those of earlier samples.

The product stays in the range of float32: `1/M <= s_i <= M`, since `sum_j kx_ij ky_ij` is at least `kx_ii ky_ii = 1`
and at most either row sum, and either row sum is between 1 and M.
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
from mikernels.triton_impl.log2 import log2

MAX_SAMPLES_PER_LOG = 16
"""More would save little, and the operands of so many samples are in memory at once."""
MAX_BITS = 120
"""Bits of the largest product and of its inverse: float32 has 126, and operands in fp8 need some for rounding."""


@triton.jit
def kde_kernel(
    a,  # [n, samples * stride] operands of the rows
    b,  # [k, samples * stride] operands of the columns
    out,  # [n, stride_out] float32, sum of log2 s_i over the samples so far
    n_rows,
    n_cols,
    stride_out,
    n_inner,  # samples * stride
    stride,  # j, padded with zeros to a multiple of BK
    factor,  # of all sums over j of a launch, for scaled operands; otherwise 1
    UPPER: tl.constexpr,
    CHIP: tl.constexpr,
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
    b_product = tl.full([BM, BN], 1.0, dtype=tl.float32) * factor
    b_sum = tl.zeros([BM, BN], dtype=tl.float32)
    o_j = 0
    # One loop over (i, j), so that loads for the next sample are on their way when one ends.
    for o_k in range(0, n_inner, BK):
        b_sum = multiply_add(
            a, b, b_sum, i_m * BM, i_n * BN, o_k, n_rows, n_cols, n_inner, BK, TF32, FP32_EVERY
        )
        o_j += BK
        if o_j == stride:  # counted, because a remainder takes a division
            b_product *= b_sum
            b_sum = tl.zeros([BM, BN], dtype=tl.float32)
            o_j = 0
    add_to(out, log2(b_product, CHIP), i_m * BM, i_n * BN, n_rows, n_cols, stride_out)


@triton.jit
def kernel_rows_kernel(
    p_score,  # [n, M] float32, scaled so that k = 2^-(difference^2)
    p_operand,  # [n, samples, stride]
    p_sum,  # [n, samples] float32, sums over j of the rounded operand
    n_samples,
    i_first,
    n_rows,  # samples
    stride,
    scale,  # sum of a row before rounding
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    p_score += i_n * n_samples
    o_i = tl.arange(0, BI)
    m_i = o_i < n_rows
    # Rows beyond the last one repeat it: another value may be far from all, and its sum 0.
    b_own = tl.load(p_score + i_first + tl.minimum(o_i, n_rows - 1))
    b_sums = tl.zeros([BI, BJ], dtype=tl.float32)
    for o_first in range(0, n_samples, BJ):
        o_j = o_first + tl.arange(0, BJ)
        b_other = tl.load(p_score + o_j, o_j < n_samples, float("inf"))
        b_difference = b_other[None, :] - b_own[:, None]
        b_sums += tl.exp2(-b_difference * b_difference)
    b_weight = scale / tl.sum(b_sums, 1)
    b_sums = tl.zeros([BI, BJ], dtype=tl.float32)
    for o_first in range(0, stride, BJ):
        o_j = o_first + tl.arange(0, BJ)
        b_other = tl.load(p_score + o_j, o_j < n_samples, float("inf"))
        b_difference = b_other[None, :] - b_own[:, None]
        b_kernel = b_weight[:, None] * tl.exp2(-b_difference * b_difference)
        b_kernel = b_kernel.to(p_operand.dtype.element_ty)
        b_sums += b_kernel.to(tl.float32)
        p_block = p_operand + (i_n * n_rows + o_i[:, None]) * stride + o_j[None, :]
        tl.store(p_block, b_kernel, m_i[:, None] & (o_j[None, :] < stride))
    tl.store(p_sum + i_n * n_rows + o_i, tl.sum(b_sums, 1), m_i)


class Kde:
    tile = 8192
    halvings = 0

    def __init__(self, problem: Problem, launcher: Launcher) -> None:
        self.problem = problem
        self.launcher = launcher

    def panel_bytes(self, n_samples: int) -> int:
        return 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        operand = self._samples_per_log(n_samples) * (padded(n_samples) * self.launcher.dtype.itemsize + 4)
        return 2 * tile * operand + 8 * tile**2

    def panel(self, variables: Variables, columns: slice) -> Tensor:
        """Scores `[n, M]` float32, scaled so that `k = 2^-(difference^2)`."""
        h = self.problem.bandwidth
        return variables.scores(columns, bandwidth=h) * (math.sqrt(0.5 * math.log2(math.e)) / h)

    def compute(self, left: Tensor, rows: slice, right: Tensor, cols: slice, *, upper: bool) -> Tensor:
        x, y = left[rows], right[cols]
        n_samples = x.shape[1]
        total = x.new_zeros(len(x), -(-len(y) // 4) * 4)  # a descriptor needs rows aligned to 16 bytes
        # log2 of the sums of the operands' rows: 0 except for rounding, which this corrects
        margin_x, margin_y = (v.new_zeros(len(v), dtype=torch.float64) for v in (x, y))
        step = self._samples_per_log(n_samples)
        per_sample = n_samples / self._scale(n_samples) ** 2  # s_i from the sum over j
        for first in range(0, n_samples, step):
            samples = min(step, n_samples - first)
            a = self._operand(x, first, samples, margin_x)
            b = a if upper else self._operand(y, first, samples, margin_y)
            self.launcher.run_tiles(
                kde_kernel,
                a,
                b,
                total,
                len(x),
                len(y),
                total.shape[1],
                a.shape[1],
                a.shape[1] // samples,
                per_sample**samples,
                adds=True,
                UPPER=upper,
                CHIP=self.launcher.chip,
            )
        margin_y = margin_x if upper else margin_y
        mean_log2 = total[:, : len(y)].sub_(margin_x.float()[:, None]).sub_(margin_y.float())
        return mean_log2.mul_(math.log(2) / n_samples)

    def _operand(self, scores: Tensor, first: int, samples: int, margin: Tensor) -> Tensor:
        """`[n, samples * stride]`; adds the effect of rounding on the sums of the rows to `margin [n]`."""
        scale = self._scale(scores.shape[1])
        operand, sums = self.launcher.rows_of_operand(
            kernel_rows_kernel, scores, first, samples, MAX_SAMPLES_PER_LOG, scale
        )
        # In float64, because torch's order of summation depends on the shape.
        margin += sums.div_(scale).log2_().sum(1, dtype=torch.float64)
        return operand

    def _scale(self, n_samples: int) -> float:
        """Sum of an operand's row: sqrt(M), in fp8 times the power of two that maps [0, sqrt(M)] onto its range."""
        root = math.sqrt(n_samples)
        return root * 2.0 ** math.floor(math.log2(448 / root)) if self.launcher.precision == "fp8" else root

    def _samples_per_log(self, n_samples: int) -> int:
        """How many ratios s_i to multiply before a logarithm, for example 12 at M = 1024: fixed by M and precision."""
        factor_bits = 2 * math.log2(self._scale(n_samples)) - math.log2(n_samples)
        bits = max(math.log2(n_samples), factor_bits)
        return max(1, min(MAX_SAMPLES_PER_LOG, int(MAX_BITS / bits)))
