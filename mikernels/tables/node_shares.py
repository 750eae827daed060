"""Tables of node shares behind `grid`: one row for each rank, the same for every ranked variable."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.options import Precision, Problem
from mikernels.reference import node_shares
from mikernels.transforms import normal_scores

INT8_MAX = 127
INT32_MAX = 2**31 - 1
GOLDEN = (math.sqrt(5) - 1) / 2


class Table(NamedTuple):
    """The shares of M ranks in some precision.

    Attributes:
        shares: `[M, W]`, zeros beyond the nodes.
        entropy: of the margin, nats, a float32 scalar.
        total: T / M, the product of the sums of two rows.
    """

    shares: Tensor
    entropy: Tensor
    total: float


@functools.lru_cache(maxsize=8)
def share_table(
    n_samples: int, problem: Problem, precision: Precision, device: torch.device, width: int | None = None
) -> Table:
    """The table that a kernel gathers from, `width` columns wide (by default the number of nodes).

    Made on the CPU, so that its bits are the same on every device.
    """
    if precision == "int8":
        shares, row_sum = integer_table(n_samples, problem)
        margin, total = shares.sum(0, dtype=torch.int64), float(row_sum) ** 2
    else:
        exact = node_shares(normal_scores(n_samples), problem)
        if precision == "fp8":
            shares = fp8_shares(exact)
        else:
            shares = exact.to({"fp16": torch.float16, "fp32": torch.float32}[precision])
        margin = shares.double().sum(0)
        total = float(margin.sum() / n_samples) ** 2
    wide = torch.zeros(n_samples, width or problem.nodes, dtype=shares.dtype)
    wide[:, : problem.nodes] = shares
    return Table(wide.to(device), entropy(margin[None])[0].to(device), total)


def integer_table(n_samples: int, problem: Problem) -> tuple[Tensor, int]:
    """Node shares of M ranks as integers `[M, G]` (int8, on the CPU), and the sum Q of each of its rows.

    The running sum over the nodes is rounded down after an offset is added, the same offset for a whole row:
    the rows then sum to exactly Q and no entry is off by 1 or more. The offsets are the golden-ratio
    sequence, so that the errors of neighbouring ranks, whose shares are nearly equal, cancel: MI is within
    2e-4 nats of the float table's from M = 4096 on and 0.02 / sqrt(M) below (plain rounding: 1e-3).
    Beyond 133,144 samples the entries shrink, so that no sum of M products passes int32.
    """
    shares = node_shares(normal_scores(n_samples), problem)  # [M, G]
    largest = min(INT8_MAX, math.isqrt(INT32_MAX // n_samples))
    row_sum = math.floor(largest / float(shares.max()))
    running = (shares * row_sum).cumsum(1)
    running[:, -1] = row_sum
    stops = torch.floor(running + _offsets(n_samples)[:, None])
    table = torch.diff(stops, dim=1, prepend=torch.zeros_like(stops[:, :1]))
    return table.clamp_(max=largest).to(torch.int8), row_sum


def fp8_shares(shares: Tensor) -> Tensor:
    """`shares [M, G]` times 256 in float8_e4m3fn, each rounded up or down so that neighbouring ranks cancel."""
    scaled = shares * 256  # of at most 448; the smallest step is then 2^-17 of a share
    step = torch.exp2(scaled.log2().floor().clamp_min(-6) - 3)  # three bits of mantissa
    node = torch.arange(shares.shape[1]) * math.sqrt(2)  # another offset for each node
    offset = (_offsets(len(shares))[:, None] + node).frac()
    return (torch.floor(scaled / step + offset) * step).to(torch.float8_e4m3fn)


def _offsets(n_samples: int) -> Tensor:
    """Evenly spread over [0, 1), near ones far apart: the golden-ratio sequence."""
    return (0.5 + torch.arange(n_samples, dtype=torch.float64) * GOLDEN).frac()


def entropy(counts: Tensor) -> Tensor:
    """Entropy in nats of each row of `counts [n, G]`, float32 `[n]`."""
    share = counts.double() / counts.sum(1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(1).float()
