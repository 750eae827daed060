"""Which neurons go first: pure functions from statistics to an order, with ties broken by index.

An order is `[N]` int64, the neuron to drop first at its head; dropping its first n neurons for any n gives
nested selections, so that one calibration serves every ratio.
"""

import torch
from torch import Tensor

from pruning.capture import Statistics
from pruning.families import FFN


def ascending(saliency: Tensor) -> Tensor:
    """Least salient first. `saliency [N]`."""
    return saliency.argsort(stable=True)


def random_order(n_neurons: int, *, seed: int) -> Tensor:
    """A random permutation."""
    return torch.randperm(n_neurons, generator=torch.Generator().manual_seed(seed))


def random_pairs(mi: Tensor, n_drop: int, *, threshold: float, seed: int) -> Tensor:
    """The paper's selection: of a random pair whose mutual information exceeds the threshold, one goes.

    The neurons are shuffled and paired, each pair above the threshold loses a random member, and the
    survivors are shuffled and paired again, until `n_drop` have gone.

    Args:
        mi: `[N, N]` nats.
        threshold: Tr, nats.

    Returns:
        `[n_drop]`, in the order in which they went.

    Raises:
        ValueError: too few pairs exceed the threshold.

    Source: Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030.
    """
    generator = torch.Generator().manual_seed(seed)
    alive = torch.arange(len(mi))
    mi = mi.cpu()
    dropped: list[Tensor] = []
    count = 0
    while count < n_drop:
        alive = alive[torch.randperm(len(alive), generator=generator)]
        half = len(alive) // 2
        redundant = mi[alive[:half], alive[half : 2 * half]] > threshold
        goes = redundant.nonzero().flatten()[: n_drop - count]
        # The pairs are in random order, and so are the members of each: the first of the two is a random one.
        if len(goes) == 0:  # few pairs are left above the threshold: look for them
            goes = (mi[alive][:, alive] > threshold).triu_(1).any(1).nonzero().flatten()[:1]
        if len(goes) == 0:
            raise ValueError(
                f"threshold: expected one that lets {n_drop} of {len(mi)} neurons go; above {threshold:.4g} "
                f"nats there are pairs for {count}"
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
