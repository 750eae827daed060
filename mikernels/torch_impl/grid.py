"""`grid` as one matrix product of features, with the logarithms of each G x G block of it summed.

Features are `phi [M, n * G]`, node shares of each sample; `T J = phi(x)^T phi(y)` with T = M for shares that
sum to 1. Then `I = H(p) + H(q) - H(J)`, where the entropies H(p) of the margins come with the panel.

Under the rank transform every column of phi is a permutation of one table [M, G]. With `integers` that
table is rounded to 8-bit integers whose rows sum to exactly Q: it remains a table of shares, products and
sums are exact, T = M Q^2, and the joint is the same to the last bit for any tile, chunk, thread or device.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.options import Problem
from mikernels.reference import node_shares
from mikernels.tables.node_shares import entropy, share_table
from mikernels.tiling import cut
from mikernels.torch_impl.integer import integer_gram
from mikernels.transforms import Variables

STRIP_ROWS = 256
"""Rows of a joint whose logs are taken at once: the temporaries stay in the cache (a third of the time)."""


class Panel(NamedTuple):
    features: Tensor  # [M, n * G] int8 or float32, the layout that a gather of table rows gives
    entropy: Tensor  # [n] of the margins, nats
    total: float  # T / M, the product of a sample's feature sums


class Grid:
    halvings = 1

    def __init__(self, problem: Problem, *, integers: bool) -> None:
        self.problem = problem
        self.integers = integers
        self.tile = max(1, 2048 // problem.nodes)  # products of about 2048 x 2048 (measured: 5 % over 1024)

    def panel_bytes(self, n_samples: int) -> int:
        shares = 1 if self.integers else 12  # the float path makes temporaries beside its result
        return n_samples * (self.problem.nodes * shares + 8)  # and ranks or scores, transposed

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 16 * (tile * self.problem.nodes) ** 2

    def panel(self, variables: Variables, columns: slice) -> Panel:
        if self.integers:
            table = share_table(variables.n_samples, self.problem, "int8", variables.data.device)
            rank = variables.data[columns].t().reshape(-1)  # [M * n]
            features = table.shares.index_select(0, rank).view(variables.n_samples, -1)
            return Panel(features, table.entropy.expand(columns.stop - columns.start), table.total)
        shares = node_shares(variables.scores(columns).t(), self.problem)  # [M, n, G]
        return Panel(shares.flatten(1), entropy(shares.sum(0, dtype=torch.float64)), 1.0)

    def compute(self, left: Panel, rows: slice, right: Panel, cols: slice, *, upper: bool) -> Tensor:
        g = self.problem.nodes
        a = left.features[:, rows.start * g : rows.stop * g]
        b = right.features[:, cols.start * g : cols.stop * g]
        joint = integer_gram(a, b) if self.integers else a.t() @ b  # [rows * G, cols * G]
        total = left.total * a.shape[0]
        return joint_to_mi(joint, total, left.entropy[rows], right.entropy[cols], g)


def joint_to_mi(joint: Tensor, total: float, p_entropy: Tensor, q_entropy: Tensor, g: int) -> Tensor:
    """Mutual information `[n, k]` from joint tables `[n * G, k * G]` that each sum to `total`."""
    strips = cut(joint.shape[0], max(1, STRIP_ROWS // g) * g)
    joint_entropy = torch.cat([_joint_entropy(joint[strip], total, g) for strip in strips])
    return p_entropy[:, None] + q_entropy - joint_entropy


def _joint_entropy(joint: Tensor, total: float, g: int) -> Tensor:
    """`log T - sum J log J / T` of each G x G block of `joint`."""
    counts = joint.to(torch.float32)
    log = counts.clamp(min=1e-30 if joint.is_floating_point() else 1.0).log_()
    tables = log.mul_(counts).view(joint.shape[0] // g, g, joint.shape[1] // g, g)
    # torch adds in an order that depends on the shape; in float64 that is lost in the rounding to float32.
    sums = tables.sum(3, dtype=torch.float64).sum(1)
    return sums.div_(-total).add_(math.log(total)).float()
