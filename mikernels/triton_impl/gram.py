"""Building blocks of the tile kernels: program to tile, the product of two operands, and the sum in memory.

Operands are `[rows, K]` with K contiguous, as 8-bit tensor cores require, padded with zeros to a whole number of
blocks. They are tensor descriptors on chips with a copy engine (Hopper and newer), and pointers on others.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of(i_program, n_tiles_m, n_tiles_n, GROUP: tl.constexpr):
    """Row and column of a program's tile: down a group of rows, then right, which keeps operands in L2."""
    n_group = GROUP * n_tiles_n
    i_first = i_program // n_group * GROUP
    n_rows = tl.minimum(n_tiles_m - i_first, GROUP)
    i_within = i_program % n_group
    return i_first + i_within % n_rows, i_within // n_rows


@triton.jit
def load_block(operand, o_m, o_k, n_rows, n_inner, BM: tl.constexpr, BK: tl.constexpr):
    """`[BM, BK]` of an operand; rows beyond its end are undefined."""
    if isinstance(operand, tl.tensor_descriptor):
        block = operand.load([o_m, o_k])
    else:
        o_row = (o_m + tl.arange(0, BM)) % n_rows  # instead of a mask, so that loads stay 16 bytes wide
        o_inner = o_k + tl.arange(0, BK)
        block = tl.load(operand + o_row[:, None].to(tl.int64) * n_inner + o_inner[None, :])
    return block


@triton.jit
def multiply_add(
    a,
    b,
    b_acc,  # [BM, BN]
    o_m,
    o_n,
    o_k,
    n_rows,
    n_cols,
    n_inner,
    BK: tl.constexpr,
    TF32: tl.constexpr,
    FP32_EVERY: tl.constexpr,
):
    """`acc + a b^T` for one block of K."""
    b_a = load_block(a, o_m, o_k, n_rows, n_inner, b_acc.shape[0], BK)
    b_b = load_block(b, o_n, o_k, n_cols, n_inner, b_acc.shape[1], BK)
    return tl.dot(
        b_a,
        b_b.T,
        b_acc,
        input_precision="tf32x3" if TF32 else "ieee",  # used for float32 operands only
        # Hopper accumulates fp8 products in 14 bits; after this many they are added to a float32 sum.
        max_num_imprecise_acc=FP32_EVERY,
        out_dtype=b_acc.dtype,
    )


@triton.jit
def add_to(out, b_tile, o_m, o_n, n_rows, n_cols, stride_out):
    """Add a tile to the matrix `[n_rows, stride_out]` of earlier launches, as a left and a right half.

    Programs never overlap; the addition is atomic because that needs no registers for the old values. It is done
    in halves because a whole tile and the operands exceed the shared memory. Launches on a stream run in order,
    so the order of the sums is fixed.
    """
    half: tl.constexpr = b_tile.shape[1] // 2
    b_left, b_right = b_tile.reshape(b_tile.shape[0], 2, half).permute(0, 2, 1).split()
    if isinstance(out, tl.tensor_descriptor):
        out.atomic_add([o_m, o_n], b_left)
        out.atomic_add([o_m, o_n + half], b_right)
    else:
        o_row = o_m + tl.arange(0, b_tile.shape[0])
        o_col = o_n + tl.arange(0, half)
        p_left = out + o_row[:, None].to(tl.int64) * stride_out + o_col[None, :]
        m_row = o_row[:, None] < n_rows
        tl.atomic_add(p_left, b_left, m_row & (o_col[None, :] < n_cols), sem="relaxed")
        tl.atomic_add(p_left + half, b_right, m_row & (o_col[None, :] + half < n_cols), sem="relaxed")
