"""`grid` on a GPU: a matrix product of features whose epilogue takes the logarithms of each G x G block.

Features are `phi [n * S, M]`, the share of each sample that each node receives, with samples contiguous. A tile of
`phi(x) phi(y)^T` holds whole joint tables. The kernel reduces each to one number, `sum u log2 u` with `u = J G^2`;
then, as in `mikernels.torch_impl.grid`, `I = H(p) + H(q) - H(J)`.

The last node is multiplied here, unlike on the CPU: a tile of 128 rows holds 8 variables with 15 nodes as with 16, one
of 256 rows 17 instead of 16, and sums over groups of 15 columns would not stay within a thread.

S is G rounded up to a power of two. The padding is rows of zeros, whose `u log u` is 0. Above 64 nodes a table is
split into blocks of 64 x 64, whose sums are added afterwards.

Under the rank transform every variable's features are the rows of one table, permuted, so a gather makes them. Atoms
(`mikernels.atoms`) have rows of their own in it; the kernels do not know of them.
Products of 8-bit integers are exact in int32 for any tile (`mikernels.tables.node_shares`).
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mikernels.atoms import Atoms
from mikernels.options import NODE_SPAN, Problem
from mikernels.tables.node_shares import ShareTable, entropy, share_table, table_rows
from mikernels.transforms import Variables
from mikernels.triton_impl.gather import gather_kernel
from mikernels.triton_impl.gram import multiply_add, tile_of
from mikernels.triton_impl.launch import Launcher, padded
from mikernels.triton_impl.log2 import log2

MAX_BLOCK_NODES = 64


@triton.jit
def grid_kernel(
    a,  # [n * S, K] features of the rows
    b,  # [k * S, K] features of the columns
    p_out,  # [n, k] float32, sum of u log2 u over each block
    n_rows,
    n_cols,
    n_inner,  # K, the samples and padding
    scale,  # G^2 / T
    UPPER: tl.constexpr,
    S: tl.constexpr,  # a block is S x S,
    W: tl.constexpr,  # a whole joint table W x W
    INTEGERS: tl.constexpr,
    CHIP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    TF32: tl.constexpr,
    FP32_EVERY: tl.constexpr,
):
    i_m, i_n = tile_of(tl.program_id(0), tl.cdiv(n_rows * S, BM), tl.cdiv(n_cols * S, BN), GROUP)
    if UPPER and ((i_n + 1) * BN - 1) // W < i_m * BM // W:  # every column lies left of the diagonal
        return
    b_joint = tl.zeros([BM, BN], dtype=tl.int32 if INTEGERS else tl.float32)
    for o_k in range(0, n_inner, BK):
        b_joint = multiply_add(
            a,
            b,
            b_joint,
            i_m * BM,
            i_n * BN,
            o_k,
            n_rows * S,
            n_cols * S,
            n_inner,
            BK,
            TF32,
            FP32_EVERY,
        )

    # u is about 1, so the logs are small, and so are their rounding errors. 1e-30 only changes 0: its term becomes 0.
    b_u = b_joint.to(tl.float32) * scale + 1e-30
    b_terms = (b_u * log2(b_u, CHIP)).reshape(BM // S, S, BN // S, S)
    b_sums = tl.sum(tl.sum(b_terms, 3), 1)  # [BM / S, BN / S]

    o_row = i_m * (BM // S) + tl.arange(0, BM // S)
    o_col = i_n * (BN // S) + tl.arange(0, BN // S)
    p_block = p_out + o_row[:, None].to(tl.int64) * n_cols + o_col[None, :]
    tl.store(p_block, b_sums, (o_row[:, None] < n_rows) & (o_col[None, :] < n_cols))


@triton.jit
def shares_kernel(
    p_score,  # [n, M] float32
    p_features,  # [n * W, K]
    n_samples,
    n_inner,
    n_nodes,
    span,
    spacing,
    factor,  # log2(e) / (2 h^2)
    W: tl.constexpr,
    BT: tl.constexpr,
):
    """`mikernels.tables.node_shares.node_shares` of values that are not ranks."""
    n_blocks = tl.cdiv(n_inner, BT)
    i_n = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_t = tl.program_id(0) % n_blocks * BT + tl.arange(0, BT)
    o_w = tl.arange(0, W)
    m_t = o_t < n_samples
    b_score = tl.load(p_score + i_n * n_samples + o_t, m_t, 0.0)
    b_score = tl.minimum(tl.maximum(b_score, -span), span)
    b_distance = b_score[:, None] + span - o_w[None, :] * spacing  # [BT, W]
    b_log = tl.where(o_w[None, :] < n_nodes, -factor * b_distance * b_distance, float("-inf"))
    b_share = tl.exp2(b_log - tl.max(b_log, 1)[:, None])
    b_share /= tl.sum(b_share, 1)[:, None]
    b_share = tl.where(m_t[:, None], b_share, 0.0)
    p_block = p_features + (i_n * W + o_w[:, None]) * n_inner + o_t[None, :]
    tl.store(p_block, b_share.T.to(p_features.dtype.element_ty), o_t[None, :] < n_inner)


class NodeFeatures(NamedTuple):
    features: Tensor  # [n * W, K] int8, float8, float16, or float32
    entropy: Tensor  # [n] of the margins, nats
    total: float  # T, the sum of a joint table of variables without atoms
    ratio: Tensor | None = None  # [n] float64, sum of a sample's features over that without atoms


class Grid:
    tile = 2048
    halvings = 0

    def __init__(self, problem: Problem, launcher: Launcher) -> None:
        self.problem = problem
        self.launcher = launcher
        self.width = max(2, triton.next_power_of_2(problem.nodes))  # W: feature rows per variable
        self.block = min(self.width, MAX_BLOCK_NODES)  # S

    def panel_bytes(self, n_samples: int) -> int:
        return self.width * padded(n_samples) * self.launcher.dtype.itemsize + 4 * n_samples

    def tile_bytes(self, tile: int, n_samples: int) -> int:
        return 4 * (tile * self.width // self.block) ** 2 + 8 * tile**2

    def panel(self, variables: Variables, columns: slice) -> NodeFeatures:
        n, n_samples = columns.stop - columns.start, variables.n_samples
        n_inner = padded(n_samples)
        features = variables.data.new_empty(n * self.width, n_inner, dtype=self.launcher.dtype)
        block_t = max(16, 4096 // self.width)
        grid = (n * triton.cdiv(n_inner, block_t),)
        if variables.ranked:
            atoms = None if variables.atoms is None else Atoms(*(t[columns] for t in variables.atoms))
            table = self._table(n_samples, variables.data.device, atoms is not None)
            self.launcher.run(
                gather_kernel,
                grid,
                table_rows(variables.data[columns], atoms, self.problem.nodes),
                table.shares,
                features,
                n_samples,
                n_inner,
                W=self.width,
                BT=block_t,
            )
            total = table.total * n_samples
            if atoms is None:
                return NodeFeatures(features, table.entropy.expand(n), total)
            margin, tied = self._margin(features), atoms.number > 0
            ratio = torch.where(tied, margin.sum(1) / (n_samples * math.sqrt(table.total)), 1.0)
            return NodeFeatures(features, torch.where(tied, entropy(margin), table.entropy), total, ratio)
        self.launcher.run(
            shares_kernel,
            grid,
            variables.scores(columns),
            features,
            n_samples,
            n_inner,
            self.problem.nodes,
            NODE_SPAN,
            self.problem.spacing,
            0.5 * math.log2(math.e) / self.problem.bandwidth**2,
            W=self.width,
            BT=block_t,
        )
        return NodeFeatures(features, entropy(self._margin(features)), float(n_samples))

    def compute(
        self, left: NodeFeatures, rows: slice, right: NodeFeatures, cols: slice, *, upper: bool
    ) -> Tensor:
        w, g = self.width, self.problem.nodes
        a = left.features[rows.start * w : rows.stop * w]
        b = right.features[cols.start * w : cols.stop * w]
        blocks = w // self.block  # along a side of a joint table
        n, k = len(a) // w, len(b) // w
        sums = torch.empty(n * blocks, k * blocks, dtype=torch.float32, device=a.device)
        self.launcher.run_tiles(
            grid_kernel,
            a,
            b,
            sums,
            n * blocks,
            k * blocks,
            a.shape[1],
            g * g / left.total,
            adds=False,
            UPPER=upper,
            S=self.block,
            W=w,
            INTEGERS=a.dtype == torch.int8,
            CHIP=self.launcher.chip,
        )
        if blocks > 1:
            sums = sums.view(n, blocks, k, blocks).sum((1, 3))
        if left.ratio is not None or right.ratio is not None:  # sum u / r log2 (u / r), since u sums to r G^2
            one = a.new_ones((), dtype=torch.float64)
            ratio = one if left.ratio is None else left.ratio[rows, None]
            ratio = ratio * (one if right.ratio is None else right.ratio[cols])
            sums = (sums / ratio - g * g * ratio.log2()).float()
        sums.mul_(math.log(2) / g**2)
        return sums.add_((left.entropy[rows] - 2 * math.log(g))[:, None]).add_(right.entropy[cols])

    def _margin(self, features: Tensor) -> Tensor:
        """Sums over the samples, `[n, W]`: in float64, because torch's order of summation depends on the shape."""
        if self.launcher.precision == "fp8":  # which torch does not sum
            sums = [part.float().sum(1, dtype=torch.float64) for part in features.split(64 * self.width)]
            return torch.cat(sums).view(-1, self.width)
        return features.sum(1, dtype=torch.float64).view(-1, self.width)

    def _table(self, n_samples: int, device: torch.device, atoms: bool) -> ShareTable:
        return share_table(n_samples, self.problem, self.launcher.precision, device, self.width, atoms=atoms)
