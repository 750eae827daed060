"""Clusters of neurons with similar activations, to limit the search for redundant pairs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mikernels.transforms import transform_samples

ROUNDS = 50
"""Maximum number of k-means iterations; it stops earlier when no neuron changes its cluster."""


def cluster_neurons(sample: Tensor, n_clusters: int) -> Tensor:
    """K-means of lines through the origin: neurons are close if their ranks rise and fall together, or oppositely.

    It uses the activations, not the mutual information. Ranks, because monotone maps do not change information; lines,
    because mirroring does not either. The initial centers are neurons at regular index distances, which are as good
    as random ones and need no seed.

    Args:
        sample: `[M, N]`, the activations of N neurons for M tokens.
        n_clusters: K; some clusters may be empty.

    Returns:
        `[N]` int64, the cluster of each neuron, 0 to K - 1. Copies are in one cluster (unless many of their values are
        equal, because ties are ranked at random), constant neurons are in the first.

    Source: Dhillon, Marcotte, Roshan, Diametrical clustering for identifying anti-correlated gene clusters,
    Bioinformatics 19 (2003), DOI 10.1093/bioinformatics/btg209; with the mean of the sign-aligned members in place of
    their first singular vector.
    """
    ranked = transform_samples(sample, "rank", seed=0)
    lines = F.normalize(ranked.scores().masked_fill(ranked.constant[:, None], 0.0))  # [N, M]
    centers = lines[torch.arange(n_clusters, device=lines.device) * len(lines) // n_clusters]  # [K, M]
    cluster = torch.full((len(lines),), -1, device=lines.device)
    for _ in range(ROUNDS):
        cosine = lines @ centers.t()  # [N, K]
        nearest = cosine.abs().argmax(1)
        if torch.equal(nearest, cluster):
            break
        cluster = nearest
        aligned = F.one_hot(cluster, n_clusters) * cosine.sign()  # [N, K]
        centers = F.normalize(aligned.t() @ lines)
    return cluster
