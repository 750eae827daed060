"""Node shares behind `grid`, and tables of them: one row for each rank, the same for every ranked variable."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.caches import cached
from mikernels.options import NODE_SPAN, Precision, Problem
from mikernels.transforms import normal_scores

INT8_MAX = 127
INT32_MAX = 2**31 - 1
GOLDEN = (math.sqrt(5) - 1) / 2


class ShareTable(NamedTuple):
    """The shares of M ranks in one precision.

    Attributes:
        shares: `[M, W]`, zeros beyond the nodes.
        entropy: of the margin, nats, a float32 scalar.
        total: T / M, the product of the sums of two rows.
        largest: that a joint count of two variables can be: a product of two features summed over the samples.
    """

    shares: Tensor
    entropy: Tensor
    total: float
    largest: float


def node_shares(x: Tensor, problem: Problem) -> Tensor:
    """Shares `[..., G]` of values `x [...]`: Gaussian weights of the nodes, normalized to sum to 1."""
    nodes = torch.linspace(-NODE_SPAN, NODE_SPAN, problem.nodes, dtype=x.dtype, device=x.device)
    distance = (x.clamp(-NODE_SPAN, NODE_SPAN)[..., None] - nodes) / problem.bandwidth
    return torch.softmax(-0.5 * distance.square(), dim=-1)


@cached(maxsize=8)
def share_table(
    n_samples: int, problem: Problem, precision: Precision, device: torch.device, width: int | None = None
) -> ShareTable:
    """The table to gather features from, padded to `width` columns (default: the number of nodes).

    It is computed on the CPU, so its bits are the same on every device.
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
    largest = float(shares.double().square().sum(0).max())  # by the inequality of Cauchy and Schwarz
    return ShareTable(wide.to(device), entropy(margin[None])[0].to(device), total, largest)


def gathered(shares: Tensor, ranks: Tensor) -> Tensor:
    """The shares `[c, n, M]` of `ranks [n, M]` from a table `[c, R]`, nodes first."""
    out = shares.new_empty(len(shares), *ranks.shape)
    for of_node, target in zip(shares, out, strict=True):
        torch.index_select(of_node, 0, ranks.flatten(), out=target.view(-1))
    return out


def integer_table(n_samples: int, problem: Problem) -> tuple[Tensor, int]:
    """Node shares of M ranks as integers `[M, G]` (int8, on the CPU), and the sum Q of every row.

    Each row's running sum over the nodes is shifted by an offset and rounded down, so rows sum to exactly Q and
    every entry is off by less than 1. The offsets are the golden-ratio sequence, so the errors of neighboring
    ranks, whose shares are nearly equal, cancel. MI is within 2e-4 nats of the float table's for M >= 4096, and
    within 0.02 / sqrt(M) below (plain rounding: 1e-3). Beyond 133,144 samples the entries shrink, so that no sum of
    M products exceeds int32.
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
    """`shares [M, G]` times 256 in float8_e4m3fn, rounded such that the errors of neighboring ranks cancel."""
    scaled = shares * 256  # fp8 ends at 448; the smallest step becomes 2^-17 of a share
    step = torch.exp2(scaled.log2().floor().clamp_min(-6) - 3)  # 3 bits of mantissa
    node = torch.arange(shares.shape[1]) * math.sqrt(2)  # a different offset for each node
    offset = (_offsets(len(shares))[:, None] + node).frac()
    return (torch.floor(scaled / step + offset) * step).to(torch.float8_e4m3fn)


def _offsets(n_samples: int) -> Tensor:
    """The golden-ratio sequence `[M]`: evenly spread over [0, 1), with neighbors far apart."""
    return (0.5 + torch.arange(n_samples, dtype=torch.float64) * GOLDEN).frac()


def entropy(counts: Tensor) -> Tensor:
    """Entropy in nats of each row of `counts [n, G]`, float32 `[n]`."""
    share = counts.double() / counts.sum(1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(1).float()
