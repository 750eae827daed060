"""The definitions, in float64: the equations and nothing else. Every other path is held against these.

`x [N, M]` and `y [K, M]` are transformed variables (`Variables.scores`), h is the bandwidth and
`k(u) = exp(-u^2 / (2 h^2))`, whose constant cancels in every formula. Results are `[N, K]` in nats.
"""

import math

import torch
from torch import Tensor

from mikernels.options import NODE_SPAN, Problem


def mutual_information(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """Mutual information of every row of `x` with every row of `y` by `problem.estimator`."""
    estimate = {"grid": grid, "kde": kde, "renyi2": renyi2}[problem.estimator]
    return estimate(x.double(), y.double(), problem)


def grid(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """`sum_ab J_ab log(J_ab / (p_a q_b))` with `J = phi(x)^T phi(y) / M` on G x G nodes.

    `phi_g` is the share of a value that node g takes: the kernel around the value, normalised over the nodes.
    """
    phi_x, phi_y = node_shares(x, problem), node_shares(y, problem)  # [N, M, G], [K, M, G]
    joint = torch.einsum("nma,kmb->nkab", phi_x, phi_y) / x.shape[1]  # [N, K, G, G]
    p, q = phi_x.mean(1), phi_y.mean(1)  # [N, G], [K, G]
    product = p[:, None, :, None] * q[None, :, None, :]
    return torch.special.xlogy(joint, joint / product).sum((2, 3))


def node_shares(x: Tensor, problem: Problem) -> Tensor:
    """`phi [..., G]` of values `x [...]`: rows sum to 1; values beyond the end nodes count as on them."""
    nodes = torch.linspace(-NODE_SPAN, NODE_SPAN, problem.nodes, dtype=x.dtype, device=x.device)
    distance = (x.clamp(-NODE_SPAN, NODE_SPAN)[..., None] - nodes) / problem.bandwidth
    return torch.softmax(-0.5 * distance.square(), dim=-1)


def kde(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """The resubstitution estimate of a Gaussian product-kernel density, self terms included.

    `1/M sum_i log [ M sum_j kx_ij ky_ij / (sum_j kx_ij sum_j ky_ij) ]`
    """
    n_samples = x.shape[1]
    kx, ky = kernel(x, problem), kernel(y, problem)  # [N, M, M], [K, M, M]
    joint = torch.einsum("nij,kij->nki", kx, ky)
    margins = kx.sum(2)[:, None] * ky.sum(2)[None]  # [N, K, M]
    return (n_samples * joint / margins).log().mean(2)


def renyi2(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """Matrix-based Renyi mutual information of order 2, `S(A) + S(B) - S(A o B / tr(A o B))`.

    `A = kx / M` is the normalised Gram matrix, `o` the Hadamard product and `S(A) = -log tr(A^2)`.

    Source: L. G. Sanchez Giraldo, M. Rao, J. C. Principe, Measures of entropy from data using infinitely
    divisible kernels, IEEE Trans. Inf. Theory 61 (2015), DOI 10.1109/TIT.2014.2370058.
    """
    n_samples = x.shape[1]
    kx2, ky2 = kernel(x, problem).square(), kernel(y, problem).square()
    joint = torch.einsum("nij,kij->nk", kx2, ky2)
    margins = kx2.sum((1, 2))[:, None] * ky2.sum((1, 2))[None]
    return (joint / margins).log() + 2 * math.log(n_samples)


def kernel(x: Tensor, problem: Problem) -> Tensor:
    """`k(x_i - x_j)` of every pair of samples: `[N, M, M]`."""
    return torch.exp(-0.5 * ((x[:, :, None] - x[:, None, :]) / problem.bandwidth).square())
