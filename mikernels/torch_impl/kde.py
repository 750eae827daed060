"""`kde` as M matrix products: for sample i, `S_i = A_i A_i^T` with `A_i[n, j] = k(x_n[i] - x_n[j])`.

Then `I = log M + 1/M sum_i log S_i - L(x) - L(y)`, `L(x) = 1/M sum_i log sum_j kx_ij`. Work is 2 M^2 FLOP per pair
and M^2 exponentials per variable.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.options import Problem
from mikernels.torch_impl.diagonal import product_tiles
from mikernels.transforms import Variables

SAMPLES_PER_LOG = 8
"""Samples whose sums are multiplied before taking one log."""
MAX_SAMPLES_FOR_PRODUCTS = 32_768
"""1 <= S_i <= M, so M^8 must stay below 2^127; above, each sum gets its own log."""


class ScoresAndMargin(NamedTuple):
    scores: Tensor  # [n, M], divided by the bandwidth
    log_margin: Tensor  # [n], L above


class Kde:
    tile = 512
    halvings = 0  # `compute` splits the products: every part of a tile would need its kernels again

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def panel_bytes(self, n_samples: int) -> int:
        return 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 8 * SAMPLES_PER_LOG * tile * (2 * n_samples + tile)

    def panel(self, variables: Variables, columns: slice) -> ScoresAndMargin:
        h = self.problem.bandwidth
        scores = variables.scores(columns, bandwidth=h) / h
        distinct = scores[:1] if variables.share_margins else scores
        log_margin = torch.stack([_log_margin(column) for column in distinct])
        return ScoresAndMargin(scores, log_margin.expand(len(scores)))

    def compute(
        self, left: ScoresAndMargin, rows: slice, right: ScoresAndMargin, cols: slice, *, upper: bool
    ) -> Tensor:
        x, y = left.scores[rows], right.scores[cols]
        n_samples = x.shape[1]
        blocks = product_tiles(len(x), len(y), upper=upper)
        total = x.new_zeros(len(x), len(y))
        for start in range(0, n_samples, SAMPLES_PER_LOG):
            samples = slice(start, start + SAMPLES_PER_LOG)
            a = kernel_rows(x, samples)  # [8, rows, M]
            b = a if upper else kernel_rows(y, samples)
            for i, j in blocks:
                sums = a[:, i] @ b[:, j].mT  # [8, rows, cols]
                if n_samples <= MAX_SAMPLES_FOR_PRODUCTS:
                    total[i, j] += sums.prod(0).log_()
                else:
                    total[i, j] += sums.log_().sum(0)
        mean_log = total / n_samples + math.log(n_samples)
        return mean_log - left.log_margin[rows, None] - right.log_margin[cols]


def kernel_rows(scores: Tensor, samples: slice) -> Tensor:
    """`k(x_n[i] - x_n[j])` for a few samples i: `[i, n, M]` from `scores [n, M]` in bandwidths."""
    distance = scores.t()[samples, :, None] - scores  # [i, n, M]
    return distance.square_().mul_(-0.5).exp_()


def _log_margin(scores: Tensor) -> Tensor:
    """`1/M sum_i log sum_j k_ij` of one variable `[M]`."""
    logs = [
        kernel_rows(scores[None], slice(start, start + 512)).sum(2).log_().sum(dtype=torch.float64)
        for start in range(0, len(scores), 512)
    ]
    return (torch.stack(logs).sum() / len(scores)).float()
