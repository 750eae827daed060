"""Mutual information of all pairs as users of other packages would compute it.

Each function takes the normal scores `z [M, n]` float32 (computed outside the timed call, in its favor) and the case,
and returns `[n, n]` nats, of which only the upper triangle is used. Packages are imported where they are used.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.cases import Case


def torch_broadcast(z: Tensor, case: Case) -> Tensor:
    """The resubstitution KDE as one broadcast expression, with a temporary of `[n, n, M, M]` float32."""
    scaled = z.T / silverman(case.M)
    kernel = torch.exp(-0.5 * (scaled[:, :, None] - scaled[:, None, :]).square())  # [n, M, M]
    joint = (kernel[:, None] * kernel[None]).sum(-1)  # [n, n, M]
    margin = kernel.sum(-1)  # [n, M]
    return (case.M * joint / (margin[:, None] * margin[None])).log().mean(-1)


def keops(z: Tensor, case: Case) -> Tensor:
    """The same estimate with the fused reductions of KeOps: no temporary, one exponential per term."""
    from pykeops.torch import LazyTensor

    scaled = (z.T / silverman(case.M))[:, :, None].contiguous()  # [n, M, 1]

    def kernel_sums(points: Tensor) -> Tensor:  # [batch, M, d] -> [batch, M]
        i, j = LazyTensor(points[:, :, None]), LazyTensor(points[:, None])
        return (-0.5 * ((i - j) ** 2).sum(-1)).exp().sum(2).squeeze(-1)

    first, second = torch.triu_indices(len(scaled), len(scaled), 1, device=z.device)
    margin = kernel_sums(scaled)
    joint = kernel_sums(torch.cat([scaled[first], scaled[second]], dim=2))
    mi = (case.M * joint / (margin[first] * margin[second])).log().mean(1)
    return _matrix(len(scaled), mi)


def widestats(z: Tensor, case: Case) -> Tensor:
    """B-splines of order 3; `nodes` is its number of bins."""
    from widestats import mutual_info

    return torch.from_numpy(mutual_info(z, bins=case.nodes, device=case.device) * math.log(2))


def scikit_learn(z: Tensor, case: Case) -> Tensor:
    """KSG with 3 neighbors, each column against all later ones, with as many jobs as torch has threads."""
    from sklearn.feature_selection import mutual_info_regression

    x = _float64(z)
    threads = torch.get_num_threads()
    rows = [
        mutual_info_regression(x[:, i + 1 :], x[:, i], random_state=case.seed, n_jobs=threads)
        for i in range(x.shape[1] - 1)
    ]
    return _matrix(x.shape[1], torch.from_numpy(np.concatenate(rows)))


def ennemi(z: Tensor, case: Case) -> Tensor:
    """KSG with 3 neighbors, on as many threads as torch uses."""
    from ennemi import pairwise_mi

    return torch.from_numpy(pairwise_mi(_float64(z), max_threads=torch.get_num_threads()))


def scipy_kde(z: Tensor, case: Case) -> Tensor:
    """The resubstitution estimate with `gaussian_kde`, whose kernel has the covariance of the pair."""
    from scipy.stats import gaussian_kde

    h = silverman(case.M)
    columns = _float64(z).T
    log_margins = [np.log(gaussian_kde(column, h)(column)) for column in columns]
    mi = [
        np.mean(np.log(gaussian_kde(pair := columns[[i, j]], h)(pair)) - log_margins[i] - log_margins[j])
        for i, j in itertools.combinations(range(len(columns)), 2)
    ]
    return _matrix(len(columns), torch.tensor(mi))


def hoi(z: Tensor, case: Case) -> Tensor:
    """The kernel estimate of hoi (JAX), compiled, over batches of 8 pairs; margins have their own bandwidth."""
    import jax
    from hoi.core import get_mi

    columns = jax.numpy.asarray(_float64(z).T[:, None])  # [n, 1, M]
    mi = get_mi("kernel")
    first, second = np.triu_indices(len(columns), 1)
    bits = jax.lax.map(lambda pair: mi(*pair), (columns[first], columns[second]), batch_size=8)
    return _matrix(len(columns), torch.from_numpy(np.array(bits)) * math.log(2))


def frites(z: Tensor, case: Case) -> Tensor:
    """The Gaussian copula of frites, without its correction of bias: each column against all later ones."""
    from frites.core.gcmi_nd import mi_nd_gg

    columns = _float64(z).T[:, None]  # [n, 1, M]
    rows = [
        mi_nd_gg(
            np.broadcast_to(columns[i], columns[i + 1 :].shape).copy(),
            columns[i + 1 :].copy(),
            mvaxis=-2,
            traxis=-1,
            biascorrect=False,
        )
        for i in range(len(columns) - 1)
    ]
    return _matrix(len(columns), torch.from_numpy(np.concatenate(rows)) * math.log(2))


def silverman(n_samples: int) -> float:
    """Bandwidth `M^(-1/6)` of the two-dimensional kernel, in standard deviations."""
    return math.pow(n_samples, -1 / 6)


def _float64(z: Tensor) -> np.ndarray:
    return z.double().cpu().numpy()


def _matrix(n: int, values: Tensor) -> Tensor:
    """`[n, n]` with the values of the pairs i < j, in row-major order, above the diagonal."""
    out = values.new_zeros(n, n)
    out[tuple(torch.triu_indices(n, n, 1))] = values
    return out
