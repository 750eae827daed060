"""Criteria that score each neuron once: saliencies `[N]` (the least salient neuron is dropped first), and orders `[N]`
from them (ties are broken by index)."""

import torch
from torch import Tensor

from pruning.model.ffn import FFN
from pruning.observe.capture import Statistics
from pruning.settings import Criterion


def ascending(saliency: Tensor) -> Tensor:
    """The order from the least salient neuron to the most salient one."""
    return saliency.argsort(stable=True)


def random_order(n_neurons: int, *, seed: int) -> Tensor:
    """A random permutation."""
    return torch.randperm(n_neurons, generator=torch.Generator().manual_seed(seed))


def redundancy_order(mi: Tensor, saliency: Tensor) -> Tensor:
    """Repeatedly drop the neuron with the least `saliency x exp(-2 I)`, I being its MI with the best kept partner.

    For Gaussian variables `exp(-2 I)` is the share of a neuron's variance that its partner does not predict. With
    `fluctuation` as the saliency, this is the output energy that cannot be recovered. Of two copies only one is
    dropped early: the other one has then lost its partner.

    Args:
        mi: `[N, N]` nats.
        saliency: `[N]`, non-negative.
    """
    mi, saliency = mi.detach().cpu().float().clone(), saliency.detach().cpu().double()
    mi.fill_diagonal_(0.0)
    n_neurons = len(mi)
    kept = torch.ones(n_neurons, dtype=torch.bool)
    best, partner = mi.max(1)
    score = saliency * torch.exp(-2 * best.double())
    order = torch.empty(n_neurons, dtype=torch.int64)
    for step in range(n_neurons):
        drop = int(score.argmin())
        order[step] = drop
        kept[drop] = False
        mi[:, drop] = 0.0
        score[drop] = float("inf")
        for orphan in ((partner == drop) & kept).nonzero().flatten().tolist():
            best[orphan], partner[orphan] = mi[orphan].max(0)
            score[orphan] = saliency[orphan] * torch.exp(-2 * best[orphan].double())
    return order


def saliency_of(ffn: FFN, statistics: Statistics, criterion: Criterion) -> Tensor:
    """The saliency that the criterion uses, or FLAP's fluctuation if it uses none."""
    if criterion == "magnitude":
        return magnitude(ffn)
    if criterion == "wanda":
        return wanda(ffn, statistics)
    return fluctuation(ffn, statistics)


def magnitude(ffn: FFN) -> Tensor:
    """L2 norm of all weights of each neuron, `[N]`."""
    squares = ffn.output.weight.detach().float().square().sum(0)
    for projection in ffn.inputs:
        squares = squares + projection.by_neuron().detach().float().square().sum(1)
    return squares.sqrt()


def wanda(ffn: FFN, statistics: Statistics) -> Tensor:
    """Wanda's |weight| x activation norm, averaged over the output projection's column, `[N]`.

    Source: Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models, arXiv
    2306.11695; structured ("Wanda-sp") as in An et al., arXiv 2312.11983.
    """
    norm = statistics.mean_square.sqrt()
    return ffn.output.weight.detach().double().abs().mean(0) * norm


def fluctuation(ffn: FFN, statistics: Statistics) -> Tensor:
    """FLAP's variance of the activation x squared norm of the output projection's column, `[N]`.

    Source: An, Zhao, Yu, Tang, Wang, Fluctuation-based Adaptive Structured Pruning for Large Language Models,
    arXiv 2312.11983.
    """
    return ffn.output.weight.detach().double().square().sum(0) * statistics.covariance.diagonal().double()
