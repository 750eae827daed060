"""Features of ranked variables: rows of one table, gathered by rank and transposed so that samples are contiguous."""

import triton
import triton.language as tl


@triton.jit
def gather_kernel(
    p_rank,  # [n, M] int32
    p_table,  # [M, W], a row for each rank
    p_features,  # [n * W, K]
    n_samples,
    n_inner,
    W: tl.constexpr,
    BT: tl.constexpr,
):
    # One axis of programs, because the second one ends at 65,535.
    n_blocks = tl.cdiv(n_inner, BT)
    i_n = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_t = tl.program_id(0) % n_blocks * BT + tl.arange(0, BT)
    o_w = tl.arange(0, W)
    m_t = o_t < n_samples
    b_rank = tl.load(p_rank + i_n * n_samples + o_t, m_t, 0)
    p_share = p_table + b_rank[:, None].to(tl.int64) * W + o_w[None, :]
    b_share = tl.load(p_share, m_t[:, None], 0.0)  # [BT, W]
    p_block = p_features + (i_n * W + o_w[:, None]) * n_inner + o_t[None, :]
    tl.store(p_block, b_share.T, o_t[None, :] < n_inner)
