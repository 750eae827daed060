"""One bandwidth for a whole layer, chosen by leave-one-out likelihood.

The density of a pair at sample i from all others, `f_i = 1 / (2 pi h^2 (M - 1)) sum_{j != i} kx_ij ky_ij`, is
evaluated on a ladder of h. The best h has the largest mean of `log f_i` over a sample of pairs and samples. Under the
rank transform all margins are the same, so the choice reflects how sharply variables depend on each other: if most
pairs are nearly independent, it is close to Silverman's. It makes the *density* of typical pairs right, not the
information of each; `estimator="adaptive"` chooses for each pair.

Source: R. P. W. Duin, On the choice of smoothing parameters for Parzen estimators of probability density
functions, IEEE Trans. Comput. 25 (1976), DOI 10.1109/TC.1976.1674577.
"""

import math

import torch
from torch import Tensor

from mikernels.options import Transform, silverman
from mikernels.tiling import cut
from mikernels.transforms import transform_samples

PAIRS = 32
QUERIES = 256
"""Samples at which the density of each pair is evaluated, drawn without replacement."""

RUNGS = tuple(2 ** (-step / 2) for step in range(-1, 7))
"""Bandwidths in units of Silverman's, from 1.4 down to 1/8: strong dependence needs narrow kernels."""

CHUNK_ELEMENTS = 2**21

FAR = 1e12
"""Beyond all scores and standardized values, and below the distances of atoms."""


def leave_one_out_bandwidth(
    x: Tensor, y: Tensor | None, transform: Transform, seed: int, most_atoms: int = 0
) -> float:
    """Choose the best of a ladder of bandwidths for `kde`, in standard deviations of the transformed variables.

    Args:
        x, y: `[M, N]` and `[M, K]` samples (`mikernels.validation.read_values`); without `y`, pairs are within `x`.
        transform: of the samples, see `mikernels.mutual_information`.
        seed: for drawing the 32 pairs and their 256 samples, and for the order of equal values.
        most_atoms: see `mikernels.transforms.transform_samples`.

    Raises:
        ValueError: a single variable, or every pair drawn holds a constant one.
    """
    generator = torch.Generator().manual_seed(seed)
    if y is None and x.shape[1] < 2:
        raise ValueError("bandwidth: expected 2 variables or more to pair for 'loo', got 1")
    if y is None:
        first, step = (torch.randint(n, (PAIRS,), generator=generator) for n in (x.shape[1], x.shape[1] - 1))
        second = (first + step + 1) % x.shape[1]
    else:
        first, second = (torch.randint(v.shape[1], (PAIRS,), generator=generator) for v in (x, y))
    left = transform_samples(x[:, first.to(x.device)], transform, seed=seed, most_atoms=most_atoms)
    others = (x if y is None else y)[:, second.to(x.device)]
    right = transform_samples(others, transform, seed=seed + 1, most_atoms=most_atoms)
    varying = ~(left.constant | right.constant)
    if not bool(varying.any()):
        raise ValueError(
            f"bandwidth: expected variables that vary for 'loo', got a constant one in each of {PAIRS} pairs"
        )
    query = torch.randperm(len(x), generator=generator)[:QUERIES].to(x.device)
    bandwidths = [factor * silverman(len(x)) for factor in RUNGS]
    likelihood = torch.zeros(len(RUNGS), dtype=torch.float64, device=x.device)
    scores = (v.scores(bandwidth=FAR)[varying] for v in (left, right))
    for a, b in zip(*scores, strict=True):
        for chunk in cut(len(query), max(1, CHUNK_ELEMENTS // len(x))):
            likelihood += _log_densities(a, b, query[chunk], bandwidths)
    return bandwidths[int(likelihood.argmax())]


def _log_densities(x: Tensor, y: Tensor, query: Tensor, bandwidths: list[float]) -> Tensor:
    """Sum of `log f_i` over the samples `query [q]`, up to constants, for each bandwidth: float64 `[H]`."""
    square = (x[query, None] - x).square_() + (y[query, None] - y).square_()  # [q, M]
    square.scatter_(1, query[:, None], math.inf)  # leave the sample itself out
    # Along the axis of an atom there is a mass instead of a density. A sample that is alone in its atoms says nothing.
    axes = (x[query] < FAR).double() + (y[query] < FAR)
    alone = square.amin(1) > FAR
    logs = [torch.logsumexp(square * (-0.5 / h**2), 1).double() - axes * math.log(h) for h in bandwidths]
    return torch.stack(logs).masked_fill_(alone, 0.0).sum(1)
