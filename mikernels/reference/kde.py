"""`kde`: the resubstitution estimate of mutual information from Gaussian product-kernel densities."""

import torch
from torch import Tensor

from mikernels.options import Problem


def kde(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """`1/M sum_i log [ M sum_j kx_ij ky_ij / (sum_j kx_ij sum_j ky_ij) ]`, where the sums include j = i.

    Args:
        x, y: `[N, M]` and `[K, M]`, complex128 (`mikernels.reference`).

    Returns:
        `[N, K]` nats.
    """
    n_samples = x.shape[1]
    kx, ky = kernel(x, problem), kernel(y, problem)  # [N, M, M], [K, M, M]
    joint = torch.einsum("nij,kij->nki", kx, ky)
    margins = kx.sum(2)[:, None] * ky.sum(2)[None]  # [N, K, M]
    return (n_samples * joint / margins).log().mean(2)


def kernel(x: Tensor, problem: Problem) -> Tensor:
    """`k(x_i - x_j)` of every pair of samples, 0 if their atoms differ: `[N, M, M]` float64."""
    difference = x[:, :, None] - x[:, None, :]
    return torch.exp(-0.5 * (difference.real / problem.bandwidth).square()) * (difference.imag == 0)
