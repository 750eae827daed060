"""Which neurons go first: pure functions from statistics to an order, with ties broken by index.

An order is `[N]` int64, the neuron to drop first at its head; dropping its first n neurons for any n gives
nested selections, so that one calibration serves every ratio.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pruning.model.families import FFN
from pruning.observe.capture import Statistics

RIDGE = 0.1
"""Share of each neuron's own variance that is added to it. Copies and rank-deficient layers are solvable with far less,
but then neurons go that others make up for on the calibration text alone."""
BLOCK = 64
"""Neurons that go before the inverse and the projection are brought up to date by one matrix product."""


class Elimination(NamedTuple):
    """An order, and what it costs.

    Attributes:
        order: `[N]` int64.
        damage: `[N + 1]` float64, ascending: the share of the variance of the FFN's output that least squares on
            the rest cannot restore when the first n of the order have gone.
    """

    order: Tensor
    damage: Tensor


def conditional_mi(covariance: Tensor, weight: Tensor) -> Elimination:
    """Backward elimination: each time the neuron goes whose loss tells least about the output, given the rest.

    For Gaussian activations `z` and an output `y = W z` that is read with noise of variance `s^2`, dropping neuron d
    from the kept set S costs the conditional mutual information

        I(z_d; y | z_S) = 1/2 log(1 + |w_d|^2 Var(z_d | z_S) / s^2)

    where `W` is, after every step, the least-squares projection from what is left. It grows with
    `|w_d|^2 Var(z_d | z_S) = |w_d|^2 / (C^-1)_dd`, which is the increase of the squared error of the output, so that
    the order is the same for every `s`, and sums of these increases are the damage.

    Args:
        covariance: `C [N, N]` of the activations, on any device.
        weight: `W [d, N]` of the output projection.

    Cost: O(N^3 + d N^2) operations, in matrix-vector products and one product of matrices every 64 neurons.

    Source: Hassibi, Stork, Second order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992; for whole
    columns, Meng et al., OSSCAR, arXiv 2403.12983. As conditional information: `benchmarks/quality`.
    """
    covariance, weight = covariance.float(), weight.detach().float()
    n_neurons, device = len(covariance), covariance.device
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)
    correlation = covariance / torch.outer(scale, scale)
    correlation.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlation))  # [N, N]
    weight = weight * deviation  # of neurons of unit variance; constant ones carry nothing
    total = torch.einsum("di,ij,dj->", weight, correlation, weight).double()

    diagonal = inverse.diagonal().clone()
    energy = weight.square().sum(0)  # |w_d|^2
    gone = torch.zeros(n_neurons, dtype=torch.bool, device=device)
    order = torch.empty(n_neurons, dtype=torch.int64, device=device)
    increase = torch.empty(n_neurons, device=device)
    for start in range(0, n_neurons, BLOCK):
        width = min(BLOCK, n_neurons - start)
        # inverse - u u^T and weight - v u^T are what they should be by now
        u, v = inverse.new_zeros(n_neurons, width), weight.new_zeros(len(weight), width)
        for i in range(width):
            cost = (energy / diagonal).masked_fill(gone, torch.inf)
            goes = cost.argmin()
            order[start + i], increase[start + i] = goes, cost[goes]
            root = diagonal[goes].sqrt()
            column = (inverse[:, goes] - u[:, :i] @ u[goes, :i]) / root  # [N]
            lost = (weight[:, goes] - v[:, :i] @ u[goes, :i]) / root  # [d]
            overlap = lost @ weight - (lost @ v[:, :i]) @ u[:, :i].t()  # [N], w_j . lost
            energy = (energy - 2 * column * overlap + column.square() * lost.square().sum()).clamp_min(0)
            diagonal = diagonal - column.square()
            u[:, i], v[:, i] = column, lost
            gone[goes] = True
            diagonal = diagonal.masked_fill(gone, 1.0)
        inverse.addmm_(u, u.t(), alpha=-1)
        weight.addmm_(v, u.t(), alpha=-1)
    damage = torch.cat([increase.new_zeros(1), increase.clamp_min(0)]).double().cumsum(0)
    return Elimination(order, damage / total.clamp_min(1e-300))


def ascending(saliency: Tensor) -> Tensor:
    """Least salient first. `saliency [N]`."""
    return saliency.argsort(stable=True)


def random_order(n_neurons: int, *, seed: int) -> Tensor:
    """A random permutation."""
    return torch.randperm(n_neurons, generator=torch.Generator().manual_seed(seed))


def random_pairs(
    mi: Tensor, n_drop: int, *, threshold: float, seed: int, cluster: Tensor | None = None
) -> Tensor:
    """The paper's selection: of a random pair whose mutual information exceeds the threshold, one goes.

    The neurons are shuffled and paired, each pair above the threshold loses a random member, and the
    survivors are shuffled and paired again, until `n_drop` have gone.

    Args:
        mi: `[N, N]` nats.
        threshold: Tr, nats.
        cluster: `[N]`, of each neuron (`pruning.choose.clusters`): only pairs within one count. By default all do.

    Returns:
        `[n_drop]`, in the order in which they went.

    Raises:
        ValueError: too few pairs exceed the threshold, or too few of these are within a cluster.

    Source: Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030.
    """
    generator = torch.Generator().manual_seed(seed)
    alive = torch.arange(len(mi))
    redundant = mi.cpu() > threshold  # [N, N]
    within = ""
    if cluster is not None:
        cluster = cluster.cpu()
        redundant &= cluster[:, None] == cluster
        within = f" within {len(cluster.unique())} clusters"
    dropped: list[Tensor] = []
    count = 0
    while count < n_drop:
        alive = alive[torch.randperm(len(alive), generator=generator)]
        half = len(alive) // 2
        goes = redundant[alive[:half], alive[half : 2 * half]].nonzero().flatten()[: n_drop - count]
        # The pairs are in random order, and so are the members of each: the first of the two is a random one.
        if len(goes) == 0:  # few redundant pairs are left: look for them
            goes = redundant[alive][:, alive].triu_(1).any(1).nonzero().flatten()[:1]
        if len(goes) == 0:
            raise ValueError(
                f"threshold: expected one that lets {n_drop} of {len(mi)} neurons go; above {threshold:.4g} "
                f"nats there are pairs{within} for {count}"
            )
        dropped.append(alive[goes])
        count += len(goes)
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[goes] = False
        alive = alive[stays]
    return torch.cat(dropped) if dropped else torch.empty(0, dtype=torch.int64)


def redundancy_saliency(mi: Tensor, saliency: Tensor) -> Tensor:
    """The least of `saliency x exp(-2 I)` goes first, I being the MI with the best partner still kept.

    For Gaussian variables `exp(-2 I)` is the share of a neuron's variance that its partner does not
    predict, so that with `fluctuation` as saliency this is the output energy that is lost for good. Of two
    copies only one can go: the other has then lost its partner.

    Args:
        mi: `[N, N]` nats.
        saliency: `[N]`, not negative.
    """
    mi, saliency = mi.detach().cpu().float().clone(), saliency.detach().cpu().double()
    mi.fill_diagonal_(0.0)
    n_neurons = len(mi)
    kept = torch.ones(n_neurons, dtype=torch.bool)
    best, partner = mi.max(1)
    score = saliency * torch.exp(-2 * best.double())
    order = torch.empty(n_neurons, dtype=torch.int64)
    for step in range(n_neurons):
        goes = int(score.argmin())
        order[step] = goes
        kept[goes] = False
        mi[:, goes] = 0.0
        score[goes] = float("inf")
        for orphan in ((partner == goes) & kept).nonzero().flatten().tolist():
            best[orphan], partner[orphan] = mi[orphan].max(0)
            score[orphan] = saliency[orphan] * torch.exp(-2 * best[orphan].double())
    return order


def magnitude(ffn: FFN) -> Tensor:
    """L2 norm of all weights of each neuron, `[N]`."""
    squares = ffn.output.weight.detach().float().square().sum(0)
    for linear in ffn.inputs:
        squares = squares + linear.weight.detach().float().square().sum(1)
    return squares.sqrt()


def wanda(ffn: FFN, statistics: Statistics) -> Tensor:
    """Wanda's |weight| x activation norm, averaged over the output projection's column, `[N]`.

    Source: Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models, arXiv
    2306.11695; structured ("Wanda-sp") as in An et al., arXiv 2312.11983.
    """
    norm = statistics.second_moment.diagonal().sqrt()
    return ffn.output.weight.detach().double().abs().mean(0) * norm


def fluctuation(ffn: FFN, statistics: Statistics) -> Tensor:
    """FLAP's variance of the activation x squared norm of the output projection's column, `[N]`.

    Source: An, Zhao, Yu, Tang, Wang, Fluctuation-based Adaptive Structured Pruning for Large Language Models,
    arXiv 2312.11983.
    """
    return ffn.output.weight.detach().double().square().sum(0) * statistics.covariance.diagonal().double()
