"""`grid` as one matrix product of features, followed by an entropy of each G x G block.

Features are `phi [M, n * G]`, the node shares of each sample. `T J = phi(x)^T phi(y)`, where T = M if the shares of
a sample sum to 1. Then `I = H(p) + H(q) - H(J)`; the entropies H(p) of the margins are stored with the features.

Under the rank transform, the features of every variable are the rows of one table [M, G], permuted. With `integers`
the table is rounded to 8-bit integers whose rows sum to exactly Q. It is still a table of shares, with T = M Q^2;
products and sums are exact, so the joint has the same bits for any tile, chunk, thread, or device. And since its rows
and columns sum to known margins, the last node is left out of the product and found by subtraction, exactly: 12 %
fewer operations at 16 nodes, 19 % at 10.
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


PRODUCT_COLUMNS = 2040
"""Columns of a product, about: 5 % faster than 1024 (measured). At powers of two, rows evict each other from caches."""


class NodeFeatures(NamedTuple):
    features: Tensor  # [M, n * (G - 1)] int8 or [M, n * G] float32, the layout of gathered table rows
    margin: Tensor | None  # [n, G] int32, sums of a joint table's rows modulo 2^32; None for float32
    entropy: Tensor  # [n] of the margins, nats
    total: float  # T / M, the product of two samples' feature sums


class Grid:
    halvings = 1

    def __init__(self, problem: Problem, *, integers: bool) -> None:
        self.problem = problem
        self.integers = integers
        self.columns = problem.nodes - 1 if integers else problem.nodes  # of a variable's features
        tile = PRODUCT_COLUMNS // self.columns
        # A float32 product takes a quarter longer if its columns are not a multiple of 8 (measured).
        self.tile = tile // 8 * 8 if tile > 8 else tile

    def panel_bytes(self, n_samples: int) -> int:
        shares = 1 if self.integers else 12  # float shares need temporaries besides their result
        return n_samples * (self.problem.nodes * shares + 8)  # and ranks or scores, transposed

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 16 * (tile * self.problem.nodes) ** 2

    def panel(self, variables: Variables, columns: slice) -> NodeFeatures:
        if self.integers:
            table = share_table(variables.n_samples, self.problem, "int8", variables.data.device)
            rank = variables.data[columns].t().reshape(-1)  # [M * n]
            n = columns.stop - columns.start
            features = table.shares[:, :-1].index_select(0, rank).view(variables.n_samples, -1)
            margin = (table.shares.sum(0, dtype=torch.int64) * math.isqrt(int(table.total))).int()
            return NodeFeatures(features, margin.expand(n, -1), table.entropy.expand(n), table.total)
        shares = node_shares(variables.scores(columns).t(), self.problem)  # [M, n, G]
        return NodeFeatures(shares.flatten(1), None, entropy(shares.sum(0, dtype=torch.float64)), 1.0)

    def compute(
        self, left: NodeFeatures, rows: slice, right: NodeFeatures, cols: slice, *, upper: bool
    ) -> Tensor:
        c = self.columns
        a = left.features[:, rows.start * c : rows.stop * c]
        b = right.features[:, cols.start * c : cols.stop * c]
        joint = integer_gram(a, b) if self.integers else a.t() @ b  # [rows * c, cols * c]
        total = left.total * a.shape[0]
        p, q = left.entropy[rows], right.entropy[cols]
        if left.margin is None or right.margin is None:
            return joint_to_mi(joint, total, p, q, c)
        return joint_to_mi(joint, total, p, q, c, left.margin[rows], right.margin[cols])


def joint_to_mi(
    joint: Tensor,
    total: float,
    p_entropy: Tensor,
    q_entropy: Tensor,
    c: int,
    p_margin: Tensor | None = None,
    q_margin: Tensor | None = None,
) -> Tensor:
    """Mutual information `[n, k]` from joint tables `[n * c, k * c]` that each sum to `total`.

    With the margins (`NodeFeatures`), c = G - 1: the tables lack the last node.
    """
    step = max(1, STRIP_ROWS // c)
    sums = []
    for rows in cut(joint.shape[0] // c, step):
        tables = joint[rows.start * c : rows.stop * c].view(-1, c, joint.shape[1] // c, c)
        # torch's order of summation depends on the shape; in float64, rounding to float32 hides the difference.
        by_row = _times_log(tables).sum(3, dtype=torch.float64)  # [n, c, k]
        if p_margin is None or q_margin is None:
            sums.append(by_row.sum(1))
            continue
        # Integers modulo 2^32: the margins may exceed int32, the results do not.
        right = p_margin[rows, :c, None] - tables.sum(3, dtype=torch.int32)  # [n, c, k]
        below = q_margin[:, :c] - tables.sum(1, dtype=torch.int32)  # [n, k, c]
        corner = p_margin[rows, c:] - below.sum(2, dtype=torch.int32)  # [n, k]
        by_row += _times_log(right)
        sums.append(by_row.sum(1) + _times_log(below).sum(2, dtype=torch.float64) + _times_log(corner))
    joint_entropy = torch.cat(sums).div_(-total).add_(math.log(total)).float()
    return p_entropy[:, None] + q_entropy - joint_entropy


def _times_log(counts: Tensor) -> Tensor:
    """`J log J`, float32, and 0 where J is."""
    smallest = 1e-30 if counts.is_floating_point() else 1.0
    counts = counts.to(torch.float32)
    return counts.clamp(min=smallest).log_().mul_(counts)
