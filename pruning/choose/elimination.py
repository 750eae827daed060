"""The order of `criterion="conditional-mi"`: backward elimination by conditional mutual information.

An order is int64 and starts with the neuron to drop first. Dropping its first n neurons, for any n, gives nested
selections: one calibration serves every ratio.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

VARIANCE_RIDGE = 0.1
"""Share of each neuron's variance that is added to it. Copies and rank-deficient layers can be solved with much less,
but then neurons are dropped that others replace only on the calibration text."""
BLOCK = 64
"""Neurons to drop between two updates of the matrices by one product each."""
LEAST_BLOCKS = 8
"""With fewer, recording them takes as long as what it saves."""


class Elimination(NamedTuple):
    """An order, and the damage of following it.

    Attributes:
        order: `[n]` int64, the first n of the N neurons to drop.
        damage: `[n + 1]` float64, ascending: the share of the variance of the FFN's output that least squares on the
            kept neurons cannot restore after the first 0 to n neurons of the order were dropped, if each neuron has
            `VARIANCE_RIDGE` of its variance as noise.
    """

    order: Tensor
    damage: Tensor


class _Projection:
    """The output projection `W [d, N]` of the kept neurons: each step reads all of it.

    Within a block it is `weight - lost^T u` with the rows of u that are filled.
    """

    def __init__(self, weight: Tensor, u: Tensor) -> None:
        self._weight, self._u, self._lost = weight, u, u.new_zeros(len(u), len(weight))

    def drop(self, d: Tensor, i: int, root: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """Drop neuron d in step i. Each `w_j` loses a multiple of the vector `w_d / root`; returns the inner products
        of this vector with all `w_j` `[N]`, and its squared norm."""
        u = self._u[:i]
        lost = (_column(self._weight, d) - _column(u, d) @ self._lost[:i]) / root  # [d]
        self._lost[i] = lost
        return lost @ self._weight - (self._lost[:i] @ lost) @ u, lost.square().sum()

    def end(self) -> None:
        """End the block."""
        self._weight.addmm_(self._lost.t(), self._u, alpha=-1)


class _Gram:
    """The inner products `W^T W [N, N]` alone: a step reads O(64 N) numbers, for 4 N^2 more operations in products.

    Within a block they are `gram - u^T v - v^T u`.

    By count it pays where memory is slow beside arithmetic, as on GPUs: for N = 11,008 and d = 4,096 a step of
    `_Projection` reads 180 MB. On a CPU it is slower for N = 4,864 and d = 896 (`benchmarks.speed.elimination`).
    """

    def __init__(self, weight: Tensor, u: Tensor) -> None:
        self._gram, self._u, self._v = weight.t() @ weight, u, torch.zeros_like(u)

    def drop(self, d: Tensor, i: int, root: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Projection.drop`."""
        u, v = self._u[:i], self._v[:i]
        overlap = (_row(self._gram, d) - _column(v, d) @ u - _column(u, d) @ v) / root
        norm = overlap[d] / root
        self._v[i] = overlap - norm / 2 * column
        return overlap, norm

    def end(self) -> None:
        """End the block."""
        self._gram.addmm_(torch.cat([self._u, self._v]).t(), torch.cat([self._v, self._u]), alpha=-1)


def conditional_mi(covariance: Tensor, weight: Tensor, n_drop: int | None = None) -> Elimination:
    """Repeatedly drop the neuron that tells least about the output given the kept ones.

    For Gaussian activations `z` and an output `y = W z` observed with noise of variance `s^2`, dropping neuron d from
    the kept set S costs the conditional mutual information

        I(z_d; y | z_S) = 1/2 log(1 + |w_d|^2 Var(z_d | z_S) / s^2)

    where `W` is, after every step, the least-squares projection of the kept neurons. It is monotone in
    `|w_d|^2 Var(z_d | z_S) = |w_d|^2 / (C^-1)_dd`, the increase of the squared error of the output. Hence the order
    does not depend on `s`, and the sum of these increases is the damage. `C` has the noise of `VARIANCE_RIDGE`.

    Args:
        covariance: `C [N, N]` of the activations, on any device.
        weight: `W [d, N]` of the output projection.
        n_drop: stop after this many neurons; by default order all N.

    Cost: O(N^3) operations for the inverse; for each neuron to drop O(N^2 + d N), in matrix-vector products and one
    matrix product per 64 neurons. Memory: N^2 float32, on a GPU as much for the Gram matrix of the weights.

    Source: Hassibi, Stork, Second order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992; for whole
    columns, Meng et al., OSSCAR, arXiv 2403.12983. As conditional information: `benchmarks/quality`.
    """
    covariance, weight = covariance.float(), weight.detach().float()
    n_neurons, device = len(covariance), covariance.device
    n_drop = n_neurons if n_drop is None else n_drop
    if n_drop == 0:
        return Elimination(
            torch.empty(0, dtype=torch.int64, device=device), torch.zeros(1, device=device).double()
        )
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)
    correlation = torch.outer(scale, scale)
    torch.div(covariance, correlation, out=correlation)
    correlation.diagonal().add_(VARIANCE_RIDGE)
    weight = weight * deviation  # for neurons of unit variance; constant ones carry nothing
    total = torch.einsum("di,ij,dj->", weight, correlation, weight).double()
    # No neuron varies more once others are known: 1 / diagonal is at most its own variance. Half of that is a bound
    # that only rounding breaks, and it keeps the root from a negative number.
    floor = 0.5 / correlation.diagonal()
    # In place: LAPACK does so for columns, which the transpose has.
    columns = correlation.t()
    torch.linalg.cholesky(columns, out=columns)
    torch.cholesky_inverse(columns, out=columns)
    inverse = correlation  # which is symmetric
    diagonal = inverse.diagonal().maximum(floor)
    energy = weight.square().sum(0)  # |w_d|^2
    dropped = torch.zeros(n_neurons, dtype=torch.bool, device=device)
    # Within a block the current inverse is `inverse - u^T u` with the rows of u that are filled.
    u = inverse.new_zeros(min(BLOCK, n_drop), n_neurons)
    outputs = (_Projection if device.type == "cpu" else _Gram)(weight, u)
    chosen = torch.empty(len(u), dtype=torch.int64, device=device)
    costs = torch.empty(len(u), device=device)

    def drop_block(width: int = BLOCK) -> None:
        """Drop so many neurons. No step waits for the device, and all of them write to the same tensors."""
        for i in range(width):
            least = (energy / diagonal).masked_fill_(dropped, torch.inf).min(0, keepdim=True)
            d = least.indices  # [1]
            chosen[i : i + 1], costs[i : i + 1] = d, least.values
            root = diagonal[d].sqrt()
            column = (_row(inverse, d) - _column(u[:i], d) @ u[:i]) / root  # [N]
            overlap, lost = outputs.drop(d, i, root, column)
            energy.sub_(2 * column * overlap).add_(column.square() * lost).clamp_min_(0)
            torch.maximum(diagonal.sub_(column.square()), floor, out=diagonal)
            u[i] = column
            dropped.index_fill_(0, d, True)
            diagonal.masked_fill_(dropped, 1.0)

    drop_whole_block: Callable[..., None] = drop_block
    if device.type == "cuda" and torch.version.hip is None and n_drop >= LEAST_BLOCKS * BLOCK:
        drop_whole_block = _recorded(drop_block, device)
    order = torch.empty(n_drop, dtype=torch.int64, device=device)
    increase = torch.empty(n_drop, device=device)
    for start in range(0, n_drop, BLOCK):
        width = min(BLOCK, n_drop - start)
        drop_whole_block() if width == BLOCK else drop_block(width)
        order[start : start + width], increase[start : start + width] = chosen[:width], costs[:width]
        if start + width < n_drop:
            inverse.addmm_(u.t(), u, alpha=-1)
            outputs.end()
    damage = torch.cat([increase.new_zeros(1), increase.clamp_min(0)]).double().cumsum(0)
    return Elimination(order, damage / total.clamp_min(1e-300))


def _row(matrix: Tensor, index: Tensor) -> Tensor:
    """The row at an index `[1]`, for which a GPU need not wait."""
    return matrix.index_select(0, index)[0]


def _column(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix.index_select(1, index)[:, 0]


def _recorded(call: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A call that replays what `call` launches: a step of 30 small kernels takes longer to launch than to run.

    Recording launches nothing, so that the state is still that before the first block. It needs a stream of the device:
    the one that torch takes by default is of the device of its first graph, and launches on others would run once and
    never be replayed.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        call()
    return graph.replay
