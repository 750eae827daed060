"""Node shares behind `grid`, and tables of them: one row for each rank, the same for every ranked variable.

Atoms (`mikernels.atoms`) take nodes of their own, from the first on. The samples outside of them share the other nodes:
all but 1, 2, 4, ... or half of the nodes, the fewest that hold the atoms of a column. A table with atoms has M rows for
each of these numbers, followed by one row for each atom.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.atoms import Atoms
from mikernels.caches import cached
from mikernels.options import GRID_BANDWIDTH_FLOOR, NODE_SPAN, Precision, Problem, node_spacing
from mikernels.transforms import normal_scores

FP8_SCALE = 256.0
INT8_MAX = 127
INT32_MAX = 2**31 - 1
GOLDEN = (math.sqrt(5) - 1) / 2


class ShareTable(NamedTuple):
    """The shares of M ranks in one precision.

    Attributes:
        shares: `[M, W]`, zeros beyond the nodes; more rows with atoms.
        entropy: of the margin of a variable without atoms, nats, a float32 scalar.
        total: T / M of two variables without atoms, the product of the sums of two rows.
        largest: that a joint count of two variables can be: a product of two features summed over the samples.
    """

    shares: Tensor
    entropy: Tensor
    total: float
    largest: float


def reserved_nodes(nodes: int) -> list[int]:
    """Numbers of nodes that a table can keep for atoms, ascending from 0."""
    powers = [2**i for i in range(nodes.bit_length()) if 2**i < nodes // 2]
    return [0, *powers, nodes // 2]


def narrowed(problem: Problem, nodes: int) -> Problem:
    """The problem for samples outside of atoms on fewer nodes, its bandwidth as wide, in nodes, as the floor asks."""
    steps = min(GRID_BANDWIDTH_FLOOR, problem.bandwidth / problem.spacing)
    return Problem("grid", nodes, max(problem.bandwidth, steps * node_spacing(nodes)))


def level_of(atoms: Atoms, nodes: int) -> Tensor:
    """Place in `reserved_nodes` of what each variable needs, `[n]` int64."""
    levels = _levels(nodes, atoms.number.device)
    return torch.searchsorted(levels, atoms.number.clamp(max=nodes // 2))


@cached(maxsize=8)
def _levels(nodes: int, device: torch.device) -> Tensor:
    """`reserved_nodes` on a device, kept there: each copy would wait for a GPU."""
    return torch.tensor(reserved_nodes(nodes), device=device)


def table_rows(codes: Tensor, atoms: Atoms | None, nodes: int) -> Tensor:
    """Rows of a table `[n, M]` int32 for ranks and atoms `codes [n, M]`; without atoms, the ranks."""
    if atoms is None:
        return codes
    n_samples, n_levels = codes.shape[1], len(reserved_nodes(nodes))
    level = level_of(atoms, nodes)[:, None]
    return torch.where(codes < 0, n_levels * n_samples - 1 - codes, level * n_samples + codes).int()


@cached(maxsize=8)
def cells_of_levels(n_samples: int, problem: Problem) -> Tensor:
    """For each of `reserved_nodes`, `sum_g E[phi_g^2] / E[phi_g]` of the other nodes: float64 on the CPU.

    As many hard cells would add as much to an estimate by chance.
    """
    cells = []
    for reserved in reserved_nodes(problem.nodes):
        rest = narrowed(problem, problem.nodes - reserved) if reserved else problem
        shares = node_shares(normal_scores(n_samples), rest)
        cells.append((shares.square().sum(0) / shares.sum(0).clamp(min=1e-300)).sum())
    return torch.stack(cells)


def node_shares(x: Tensor, problem: Problem) -> Tensor:
    """Shares `[..., G]` of values `x [...]`: Gaussian weights of the nodes, normalized to sum to 1."""
    nodes = torch.linspace(-NODE_SPAN, NODE_SPAN, problem.nodes, dtype=x.dtype, device=x.device)
    distance = (x.clamp(-NODE_SPAN, NODE_SPAN)[..., None] - nodes) / problem.bandwidth
    return torch.softmax(-0.5 * distance.square(), dim=-1)


@cached(maxsize=8)
def share_table(
    n_samples: int,
    problem: Problem,
    precision: Precision,
    device: torch.device,
    width: int | None = None,
    *,
    atoms: bool = False,
) -> ShareTable:
    """The table to gather features from, padded to `width` columns (default: the number of nodes).

    It is computed on the CPU, so its bits are the same on every device.
    """
    sizes = reserved_nodes(problem.nodes) if atoms else [0]
    whole, row_sum = _rounded(n_samples, problem, precision)
    n_rows = len(sizes) * n_samples + (problem.nodes if atoms else 0)
    shares = torch.zeros(n_rows, width or problem.nodes, dtype=whole.dtype)
    shares[:n_samples, : problem.nodes] = whole
    for i, reserved in enumerate(sizes[1:], 1):
        rest = narrowed(problem, problem.nodes - reserved)
        block, row_sum = _rounded(n_samples, rest, precision, largest_share(n_samples))
        shares[i * n_samples : (i + 1) * n_samples, reserved : problem.nodes] = block
    shares[len(sizes) * n_samples :].diagonal().copy_(torch.tensor(row_sum))  # the rows of the atoms
    margin = whole.sum(0, dtype=torch.int64) if precision == "int8" else whole.double().sum(0)
    total = float(margin.sum() / n_samples) ** 2
    largest = float(whole.double().square().sum(0).max())  # by the inequality of Cauchy and Schwarz
    if atoms:  # all samples of two variables may lie in one atom
        largest = max(largest, float(n_samples * row_sum**2))
    return ShareTable(shares.to(device), entropy(margin[None])[0].to(device), total, largest)


def _rounded(
    n_samples: int, problem: Problem, precision: Precision, row_sum: int | None = None
) -> tuple[Tensor, float]:
    """Node shares `[M, G]` in a precision, and the sum of a row (in fp8 the one before rounding)."""
    if precision == "int8":
        return integer_table(n_samples, problem, row_sum)
    exact = node_shares(normal_scores(n_samples), problem)
    if precision == "fp8":
        return fp8_shares(exact), FP8_SCALE
    return exact.to({"fp16": torch.float16, "fp32": torch.float32}[precision]), 1.0


def gathered(shares: Tensor, ranks: Tensor) -> Tensor:
    """The shares `[c, n, M]` of `ranks [n, M]` from a table `[c, R]`, nodes first."""
    out = shares.new_empty(len(shares), *ranks.shape)
    for of_node, target in zip(shares, out, strict=True):
        torch.index_select(of_node, 0, ranks.flatten(), out=target.view(-1))
    return out


def integer_table(n_samples: int, problem: Problem, row_sum: int | None = None) -> tuple[Tensor, int]:
    """Node shares of M ranks as integers `[M, G]` (int8, on the CPU), and the sum Q of every row.

    Q is `row_sum`, or by default as large as the entries allow. With atoms it is the largest entry, that of their rows.

    Each row's running sum over the nodes is shifted by an offset and rounded down, so rows sum to exactly Q and
    every entry is off by less than 1. The offsets are the golden-ratio sequence, so the errors of neighboring
    ranks, whose shares are nearly equal, cancel. MI is within 2e-4 nats of the float table's for M >= 4096, and
    within 0.02 / sqrt(M) below (plain rounding: 1e-3). Beyond 133,144 samples the entries shrink, so that no sum of
    M products exceeds int32: a variable with a copy of itself is then within 4e-4 nats at a million samples and 1.1e-3
    at three.
    """
    shares = node_shares(normal_scores(n_samples), problem)  # [M, G]
    largest = largest_share(n_samples)
    row_sum = row_sum or math.floor(largest / float(shares.max()))
    running = (shares * row_sum).cumsum(1)
    running[:, -1] = row_sum
    stops = torch.floor(running + _offsets(n_samples)[:, None])
    table = torch.diff(stops, dim=1, prepend=torch.zeros_like(stops[:, :1]))
    return table.clamp_(max=largest).to(torch.int8), row_sum


def largest_share(n_samples: int) -> int:
    """The largest entry of a table of integers."""
    return min(INT8_MAX, math.isqrt(INT32_MAX // n_samples))


def fp8_shares(shares: Tensor) -> Tensor:
    """`shares [M, G]` times 256 in float8_e4m3fn, rounded such that the errors of neighboring ranks cancel."""
    scaled = shares * FP8_SCALE  # fp8 ends at 448; the smallest step becomes 2^-17 of a share
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
