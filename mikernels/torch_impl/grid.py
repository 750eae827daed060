"""`grid` as one matrix product of features, followed by an entropy of each G x G block.

Features are `phi [M, n * G]`, the node shares of each sample. `T J = phi(x)^T phi(y)`, where T = M if the shares of
a sample sum to 1. Then `I = H(p) + H(q) - H(J)`; the entropies H(p) of the margins are stored with the features.

Under the rank transform, the features of every variable are the rows of one table [M, G], permuted. With `integers`
the table is rounded to 8-bit integers whose rows sum to exactly Q. It is still a table of shares, with T = M Q^2;
products and sums are exact, so the joint has the same bits for any tile, chunk, thread, or device.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.options import Problem
from mikernels.tables.node_shares import entropy, node_shares, share_table
from mikernels.tiling import cut
from mikernels.torch_impl.integer import integer_gram
from mikernels.transforms import Variables

STRIP_ROWS = 256
"""Rows of a joint to process at a time, so that temporaries stay in the cache: a third of the time without."""


class NodeFeatures(NamedTuple):
    features: Tensor  # [M, n * G] int8 or float32, the layout of gathered table rows
    entropy: Tensor  # [n] of the margins, nats
    total: float  # T / M, the product of two samples' feature sums


class Grid:
    halvings = 1

    def __init__(self, problem: Problem, *, integers: bool) -> None:
        self.problem = problem
        self.integers = integers
        self.tile = max(1, 2048 // problem.nodes)  # products of about 2048 x 2048 (measured: 5 % over 1024)

    def panel_bytes(self, n_samples: int) -> int:
        shares = 1 if self.integers else 12  # float shares need temporaries besides their result
        return n_samples * (self.problem.nodes * shares + 8)  # and ranks or scores, transposed

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 16 * (tile * self.problem.nodes) ** 2

    def panel(self, variables: Variables, columns: slice) -> NodeFeatures:
        if self.integers:
            table = share_table(variables.n_samples, self.problem, "int8", variables.data.device)
            rank = variables.data[columns].t().reshape(-1)  # [M * n]
            features = table.shares.index_select(0, rank).view(variables.n_samples, -1)
            return NodeFeatures(features, table.entropy.expand(columns.stop - columns.start), table.total)
        shares = node_shares(variables.scores(columns).t(), self.problem)  # [M, n, G]
        return NodeFeatures(shares.flatten(1), entropy(shares.sum(0, dtype=torch.float64)), 1.0)

    def compute(
        self, left: NodeFeatures, rows: slice, right: NodeFeatures, cols: slice, *, upper: bool
    ) -> Tensor:
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
    # torch's order of summation depends on the shape; in float64, rounding to float32 hides the difference.
    sums = tables.sum(3, dtype=torch.float64).sum(1)
    return sums.div_(-total).add_(math.log(total)).float()
