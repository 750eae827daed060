"""Samples whose mutual information is known: correlated normal variables under a heavy-tailed monotone map."""

import math

import torch
from torch import Tensor

from benchmarks.throughput.cases import Case
from mikernels.transforms import transform_samples

FACTORS = 4


def _loadings(case: Case) -> tuple[Tensor, Tensor, torch.Generator]:
    """Loadings `[FACTORS, N]` and noise `[N]` of unit-variance variables, and the generator to go on with.

    The share of noise is uniform over the variables, so that pairs range from nearly independent to close.
    """
    generator = torch.Generator().manual_seed(case.seed)
    loadings = torch.randn(FACTORS, case.N, generator=generator, dtype=torch.float64)
    noise = torch.rand(case.N, generator=generator, dtype=torch.float64)
    loadings *= ((1 - noise) / loadings.square().sum(0)).sqrt()
    return loadings, noise.sqrt(), generator


def samples(case: Case) -> Tensor:
    """`[M, N]` float32 on the case's device: signed squares of normals, kurtosis 12, as heavy-tailed as a gated FFN."""
    loadings, noise, generator = _loadings(case)
    factors = torch.randn(case.M, FACTORS, generator=generator)
    z = factors @ loadings.float()
    z += torch.randn(case.M, case.N, generator=generator) * noise.float()
    return (z * z.abs()).to(case.device)


def true_mi(case: Case, n: int) -> Tensor:
    """`[n, n]` nats among the first n variables: `-1/2 log(1 - rho^2)`, infinite on the diagonal."""
    loadings, _, _ = _loadings(case)
    rho = loadings[:, :n].T @ loadings[:, :n]
    rho.fill_diagonal_(1.0)
    return -0.5 * torch.log1p(-rho.square())


def scores(x: Tensor, seed: int) -> Tensor:
    """Normal scores of the ranks in each column of `x [M, N]`, float32."""
    return transform_samples(x, "rank", seed=seed).scores().T.contiguous()


def silverman(n_samples: int) -> float:
    """Bandwidth `M^(-1/6)` of the two-dimensional kernel, in standard deviations."""
    return math.pow(n_samples, -1 / 6)
