"""The selection of `criterion="random-pairs"`, which is the paper's."""

import torch
from torch import Tensor


def random_pairs(
    mi: Tensor, n_drop: int, *, threshold: float, seed: int, cluster: Tensor | None = None
) -> Tensor:
    """Drop a random neuron of random pairs whose mutual information exceeds the threshold.

    The neurons are shuffled and paired, one random member of each pair above the threshold is dropped, and the
    remaining neurons are shuffled and paired again, until `n_drop` neurons are dropped.

    Args:
        mi: `[N, N]` nats.
        threshold: Tr, nats.
        cluster: `[N]`, the cluster of each neuron (`pruning.choose.clusters`): only pairs within a cluster count. By
            default all pairs do.

    Returns:
        `[n_drop]`, in the order of dropping.

    Raises:
        ValueError: too few pairs exceed the threshold, or too few of them are within a cluster.

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
        # The members of a pair are in random order: its first member is a random one.
        drop = redundant[alive[:half], alive[half : 2 * half]].nonzero().flatten()[: n_drop - count]
        if len(drop) == 0:  # few redundant pairs are left: search all pairs for one
            drop = redundant[alive][:, alive].triu_(1).any(1).nonzero().flatten()[:1]
        if len(drop) == 0:
            raise ValueError(
                f"threshold: expected pairs{within} above {threshold:.4g} nats to drop {n_drop} of {len(mi)} neurons, "
                f"got pairs for {count}"
            )
        dropped.append(alive[drop])
        count += len(drop)
        keep = torch.ones(len(alive), dtype=torch.bool)
        keep[drop] = False
        alive = alive[keep]
    return torch.cat(dropped) if dropped else torch.empty(0, dtype=torch.int64)
