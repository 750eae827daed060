"""`renyi2` as one matrix product over pairs of samples: `J = sum_{i<j} (kx_ij ky_ij)^2`.

With `V(x, y) = M + 2 J` and `V(x) = M + 2 sum_{i<j} kx_ij^2`, `I = log M^2 V(x, y) / (V(x) V(y))`. Work is M^2 FLOP
per pair and M^2 / 2 exponentials per variable.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.options import Problem
from mikernels.torch_impl.diagonal import product_tiles
from mikernels.transforms import Variables

PAIRS_PER_PRODUCT = 8192


class ScoresAndPotential(NamedTuple):
    scores: Tensor  # [n, M], scaled so that `exp(-difference^2 / 2)` is the squared kernel
    log_potential: Tensor  # [n], log V


class Renyi2:
    tile = 512
    halvings = 0  # `compute` splits the products: every part of a tile would need its kernels again

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def panel_bytes(self, n_samples: int) -> int:
        return 8 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 12 * tile * (2 * max(PAIRS_PER_PRODUCT, n_samples) + tile)

    def panel(self, variables: Variables, columns: slice) -> ScoresAndPotential:
        h = self.problem.bandwidth
        scores = variables.scores(columns, bandwidth=h) * (math.sqrt(2) / h)
        distinct = scores[:1] if variables.share_margins else scores
        sums = [features.sum(1, dtype=torch.float64) for features in _squared_kernels(distinct)]
        return ScoresAndPotential(scores, _log_potential(sum(sums), scores.shape[1]).expand(len(scores)))

    def compute(
        self, left: ScoresAndPotential, rows: slice, right: ScoresAndPotential, cols: slice, *, upper: bool
    ) -> Tensor:
        x, y = left.scores[rows], right.scores[cols]
        joint = x.new_zeros(len(x), len(y), dtype=torch.float64)
        blocks = product_tiles(len(x), len(y), upper=upper)
        kernels = _squared_kernels(x)
        kernel_pairs = ((a, a) for a in kernels) if upper else zip(kernels, _squared_kernels(y), strict=True)
        for a, b in kernel_pairs:
            for i, j in blocks:
                joint[i, j] += a[i] @ b[j].t()
        log_joint = _log_potential(joint, x.shape[1]) + 2 * math.log(x.shape[1])
        return log_joint - left.log_potential[rows, None] - right.log_potential[cols]


def _squared_kernels(scores: Tensor) -> Iterator[Tensor]:
    """`k(x_i - x_j)^2` of all pairs i < j of samples, a chunk at a time: `[n, pairs]`, zero where i >= j."""
    n_samples = scores.shape[1]
    step = max(1, PAIRS_PER_PRODUCT // n_samples)
    for start in range(0, n_samples - 1, step):
        later = scores[:, start + 1 :]  # only j > start is needed
        count = min(step, later.shape[1])
        distance = scores[:, start : start + count, None] - later[:, None]  # [n, i, j]
        kernels = distance.square_().mul_(-0.5).exp_().triu_()
        yield kernels.flatten(1)


def _log_potential(pair_sum: Tensor | int, n_samples: int) -> Tensor:
    return torch.as_tensor(n_samples + 2 * pair_sum).log().float()
