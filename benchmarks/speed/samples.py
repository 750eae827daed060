"""Samples with known mutual information: correlated normal variables under a heavy-tailed monotone map."""

import itertools
import math

import torch
from torch import Tensor

from benchmarks.speed.cases import Case
from mikernels.transforms import transform_samples

FACTORS = 4


def samples(case: Case) -> Tensor:
    """`[M, N]` float32 on the device of the case.

    Signed squares of normals, with kurtosis 12: as heavy-tailed as the neurons of a gated FFN. With zeros, the normals
    are rectified first.
    """
    loadings, noise, generator = _loadings(case)
    factors = torch.randn(case.M, FACTORS, generator=generator)
    z = factors @ loadings.float()
    z += torch.randn(case.M, case.N, generator=generator) * noise.float()
    if case.zeros:
        z = (z - _threshold(case)).clamp_(min=0)
    return (z * z.abs()).to(case.device)


def gated_activations(n_samples: int, n_variables: int, seed: int) -> Tensor:
    """`[M, N]` heavy-tailed, correlated columns like those of a gated FFN: products of two maps of a few factors."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(n_samples, 64, generator=generator)
    gate, up = (factors @ torch.randn(64, n_variables, generator=generator) / 8 for _ in range(2))
    return torch.nn.functional.silu(gate) * up


def true_mi(case: Case, n: int) -> Tensor:
    """`[n, n]` nats among the first n variables: `-1/2 log(1 - rho^2)`, infinite on the diagonal.

    With zeros by quadrature (`benchmarks.accuracy.truths.in_pieces`), and 0 on the diagonal.
    """
    loadings, _, _ = _loadings(case)
    rho = loadings[:, :n].T @ loadings[:, :n]
    rho.fill_diagonal_(1.0)
    if not case.zeros:
        return -0.5 * torch.log1p(-rho.square())
    from benchmarks.accuracy.truths import in_pieces  # here, since a GPU machine may lack SciPy

    cut = _threshold(case)
    pieces = ((-math.inf, cut, True), (cut, math.inf, False))
    truth = torch.zeros_like(rho)
    for i, j in itertools.combinations(range(n), 2):
        truth[i, j] = truth[j, i] = in_pieces(float(rho[i, j]), pieces, pieces)
    return truth


def scores(x: Tensor, seed: int) -> Tensor:
    """Normal scores of the ranks in each column of `x [M, N]`, float32; many equal values share their mean rank."""
    if len(x[:, 0].unique()) < 0.9 * len(x):
        from scipy.stats import rankdata

        rank = torch.from_numpy(rankdata(x.cpu().numpy(), axis=0)).to(x.device)
        return torch.special.ndtri((rank - 0.5) / len(x)).float()
    return transform_samples(x, "rank", seed=seed).scores().T.contiguous()


def _threshold(case: Case) -> float:
    """The normal quantile below which values are 0."""
    return float(torch.special.ndtri(torch.tensor(case.zeros, dtype=torch.float64)))


def _loadings(case: Case) -> tuple[Tensor, Tensor, torch.Generator]:
    """Loadings `[FACTORS, N]` and noise `[N]` of unit-variance variables, and the generator in its state after them.

    The share of noise is uniform over the variables, so that pairs range from nearly independent to nearly equal.
    """
    generator = torch.Generator().manual_seed(case.seed)
    loadings = torch.randn(FACTORS, case.N, generator=generator, dtype=torch.float64)
    noise = torch.rand(case.N, generator=generator, dtype=torch.float64)
    loadings *= ((1 - noise) / loadings.square().sum(0)).sqrt()
    return loadings, noise.sqrt(), generator
