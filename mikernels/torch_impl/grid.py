"""`grid` as one matrix product of features, followed by an entropy of each G x G block.

Features are `phi [n * G, M]`, the node shares of each sample. `T J = phi(x) phi(y)^T`, where T = M if the shares of
a sample sum to 1. Then `I = H(p) + H(q) - H(J)`; the entropies H(p) of the margins are stored with the features. Rows
are sorted by node first, so that sums over the nodes run over contiguous memory.

Under the rank transform, the features of every variable are the columns of one table [G, M], permuted. With `integers`
the table is rounded to 8-bit integers whose columns sum to exactly Q. It is still a table of shares, with T = M Q^2;
products and sums are exact, so the joint has the same bits for any tile, chunk, thread, or device. And since its rows
and columns sum to known margins, the last node is left out of the product and found by subtraction, exactly: 12 %
fewer operations at 16 nodes, 19 % at 10.

Atoms (`mikernels.atoms`) have nodes of their own. Their variables have margins of their own, and another Q.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.atoms import Atoms
from mikernels.options import Problem
from mikernels.tables.node_shares import (
    entropy,
    gathered,
    largest_share,
    node_shares,
    share_table,
    table_rows,
)
from mikernels.torch_impl.integer import EXACT, byte_gram, product_bytes
from mikernels.transforms import Variables

PRODUCT_COLUMNS = 2040
"""Columns of a product, about: 5 % faster than 1024 (measured). At powers of two, rows evict each other from caches."""

SAMPLES = 8192
"""Most samples of one 8-bit product: its operands are converted, which takes memory."""


class NodeFeatures(NamedTuple):
    features: Tensor  # [G - 1, n, M] int8 or [G, n, M] float32
    margin: (
        Tensor | None
    )  # [G, n] int32, sums of the features of each node, [G, 1] if the same; None for float32
    entropy: Tensor  # [n] of the margins, nats
    row_sum: Tensor  # [n] float64, sums of the features of a sample: Q, or 1; [1] if all have the same
    small: bool  # whether float32 holds every joint count


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
        return n_samples * (self.problem.nodes * shares + 8)  # and ranks or scores

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        operand = min(n_samples, SAMPLES) if self.integers else n_samples
        return product_bytes(tile * self.problem.nodes, operand)

    def panel(self, variables: Variables, columns: slice) -> NodeFeatures:
        n, n_samples, atoms = columns.stop - columns.start, variables.n_samples, variables.atoms
        one = torch.ones(1, dtype=torch.float64, device=variables.data.device)
        if not self.integers and atoms is None:
            features = node_shares(variables.scores(columns), self.problem).permute(2, 0, 1).contiguous()
            return NodeFeatures(features, None, entropy(features.sum(2, dtype=torch.float64).t()), one, True)
        table = share_table(
            n_samples,
            self.problem,
            "int8" if self.integers else "fp32",
            variables.data.device,
            atoms=atoms is not None,
        )
        own = None if atoms is None else Atoms(*(t[columns] for t in atoms))
        shares = table.shares.t().contiguous()  # [G, M or more]
        features = gathered(
            shares[: self.columns], table_rows(variables.data[columns], own, self.problem.nodes)
        )
        small = n_samples <= SAMPLES and table.largest < EXACT
        if own is None:
            margin, row_sum = shares.sum(1, dtype=torch.int64).int()[:, None], one * math.sqrt(table.total)
            return NodeFeatures(features, margin, table.entropy.expand(n), row_sum, small)
        margin = features.sum(2, dtype=torch.float64)
        if not self.integers:
            return NodeFeatures(features, None, entropy(margin.t()), one, True)
        tied = own.number > 0
        row_sum = torch.where(tied, float(largest_share(n_samples)), math.sqrt(table.total) * one)
        margin = torch.cat([margin, (n_samples * row_sum - margin.sum(0))[None]])  # the last node
        own_entropy = torch.where(tied, entropy(margin.t()), table.entropy)
        return NodeFeatures(features, margin.long().int(), own_entropy, row_sum, small)

    def compute(
        self, left: NodeFeatures, rows: slice, right: NodeFeatures, cols: slice, *, upper: bool
    ) -> Tensor:
        a, b = left.features[:, rows], right.features[:, cols]
        if not self.integers:
            joint = a.flatten(0, 1) @ b.flatten(0, 1).t()
        else:
            joint = byte_gram(a, b, small=left.small and right.small)
        tables = joint.view(*a.shape[:2], *b.shape[:2])
        p_sum, q_sum = _part(left.row_sum, rows), _part(right.row_sum, cols)
        total = p_sum[:, None] * q_sum * a.shape[2]
        p, q = left.entropy[rows], right.entropy[cols]
        if left.margin is None or right.margin is None:
            return joint_to_mi(tables, total, p, q)
        # Sums of the rows and the columns of a joint table. Integers modulo 2^32: they may exceed int32.
        p_margin = _part(left.margin, rows)[:, :, None] * q_sum.int()
        q_margin = _part(right.margin, cols)[:, None] * p_sum.int()[:, None]
        return joint_to_mi(tables, total, p, q, p_margin, q_margin)


def _part(values: Tensor, variables: slice) -> Tensor:
    """The values of some variables, from the last axis; all of one that is the same for all variables."""
    return values if values.shape[-1] == 1 else values[..., variables]


def joint_to_mi(
    tables: Tensor,
    total: Tensor,
    p_entropy: Tensor,
    q_entropy: Tensor,
    p_margin: Tensor | None = None,
    q_margin: Tensor | None = None,
) -> Tensor:
    """Mutual information `[n, k]` from joint tables `[c, n, c, k]` that sum to `total [n, k]` (float64).

    With the margins `[G, n, k]` of the tables, modulo 2^32, c = G - 1: the tables lack the last node. Totals and
    margins broadcast.
    """
    c, n, _, k = tables.shape
    by_column = tables.new_zeros(n, c, k, dtype=torch.float32)
    # A node of the first variables at a time, so that temporaries stay in the cache.
    if p_margin is None or q_margin is None:
        for counts in tables:  # [n, c, k]
            by_column += _times_log(counts)
        sums = by_column.sum(1, dtype=torch.float64)
    else:
        below = q_margin[:c].expand(c, n, k).transpose(0, 1).clone(memory_format=torch.contiguous_format)
        last = by_column.new_zeros(n, k)
        for node, counts in enumerate(tables):
            by_column += _times_log(counts)
            below -= counts
            last += _times_log(p_margin[node] - counts.sum(1, dtype=torch.int32))
        by_column += _times_log(below)
        last += _times_log(p_margin[c] - below.sum(1, dtype=torch.int32))
        sums = by_column.sum(1, dtype=torch.float64).add_(last)
    joint_entropy = sums.div_(-total).add_(total.log()).float()
    return p_entropy[:, None] + q_entropy - joint_entropy


def _times_log(counts: Tensor) -> Tensor:
    """`J log J`, float32, and 0 where J is."""
    smallest = 1e-30 if counts.is_floating_point() else 1.0
    counts = counts.to(torch.float32)
    return counts.clamp(min=smallest).log_().mul_(counts)
