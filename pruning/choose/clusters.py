"""Neurons in groups that move together, so that redundant pairs need not be sought among all pairs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mikernels.transforms import transform_samples

ROUNDS = 50
"""Of k-means, at most: it stops where no neuron changes its cluster."""


def cluster_neurons(sample: Tensor, n_clusters: int) -> Tensor:
    """K-means of lines through the origin: neurons are near where their ranks go up and down together, or mirrored.

    It reads the activations and not their mutual information, which is there to be looked up within clusters only.
    Of ranks, since monotone maps change no information; of lines, since mirroring changes none either. The first
    centres are neurons at even distances, which are as good as random ones and need no seed.

    Args:
        sample: `[M, N]`, the activations of N neurons for M tokens.
        n_clusters: K; some of them may end up empty.

    Returns:
        `[N]` int64, the cluster of each neuron, 0 to K - 1. Copies are in one cluster (unless many of their values
        are equal, which are ranked at random), constant neurons in the first.

    Source: Dhillon, Marcotte, Roshan, Diametrical clustering for identifying anti-correlated gene clusters,
    Bioinformatics 19 (2003), DOI 10.1093/bioinformatics/btg209; with the mean of the turned members for their first
    singular vector.
    """
    ranked = transform_samples(sample, "rank", seed=0)
    lines = F.normalize(ranked.scores().masked_fill(ranked.constant[:, None], 0.0))  # [N, M]
    centres = lines[torch.arange(n_clusters, device=lines.device) * len(lines) // n_clusters]  # [K, M]
    cluster = torch.full((len(lines),), -1, device=lines.device)
    for _ in range(ROUNDS):
        cosine = lines @ centres.t()  # [N, K]
        nearest = cosine.abs().argmax(1)
        if torch.equal(nearest, cluster):
            break
        cluster = nearest
        turned = F.one_hot(cluster, n_clusters) * cosine.sign()  # [N, K]
        centres = F.normalize(turned.t() @ lines)
    return cluster
