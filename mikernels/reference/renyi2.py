"""`renyi2`: matrix-based Renyi mutual information of order 2."""

import math

import torch
from torch import Tensor

from mikernels.options import Problem
from mikernels.reference.kde import kernel


def renyi2(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """`S(A) + S(B) - S(A o B / tr(A o B))`, where `S(A) = -log tr(A^2)`.

    `A = kx / M` and `B = ky / M` are the normalized Gram matrices and `o` is the Hadamard product.

    Args:
        x, y: `[N, M]` and `[K, M]`, complex128 (`mikernels.reference`).

    Returns:
        `[N, K]` nats.

    Source: L. G. Sanchez Giraldo, M. Rao, J. C. Principe, Measures of entropy from data using infinitely
    divisible kernels, IEEE Trans. Inf. Theory 61 (2015), DOI 10.1109/TIT.2014.2370058.
    """
    n_samples = x.shape[1]
    kx2, ky2 = kernel(x, problem).square(), kernel(y, problem).square()
    joint = torch.einsum("nij,kij->nk", kx2, ky2)
    margins = kx2.sum((1, 2))[:, None] * ky2.sum((1, 2))[None]
    return (joint / margins).log() + 2 * math.log(n_samples)
