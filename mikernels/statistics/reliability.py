"""How reliable a ranking of pairs is, from the matrices of two disjoint halves of the samples.

A ranking that another draw of samples would not reproduce is noise. Comparing two halves measures the agreement at
M / 2 samples. The Spearman-Brown formula extrapolates it to k times as many samples,

    r(k) = k r / (1 + (k - 1) r),

which is exact for product-moment correlations if the variance of the noise falls as 1 / M. For ranks, and for
estimators whose bandwidth shrinks with M, it is an approximation.

Source: C. Spearman, Correlation calculated from faulty data, Br. J. Psychol. 3 (1910),
DOI 10.1111/j.2044-8295.1910.tb00206.x; W. Brown, Some experimental results in the correlation of mental abilities,
ibid., DOI 10.1111/j.2044-8295.1910.tb00207.x.
"""

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from mikernels.api import Samples, mutual_information
from mikernels.isolation import isolated
from mikernels.numbers import real
from mikernels.options import Options, plain, shows_options
from mikernels.validation import MIN_SAMPLES, as_samples, read_values


class Reliability(NamedTuple):
    """Agreement between the rankings from two draws of samples, from -1 to 1.

    Attributes:
        n_samples: M, of both halves together.
        halves: Spearman's correlation over pairs between the halves, each of M / 2 samples.
        full: the correlation expected between two draws of M samples.
    """

    n_samples: int
    halves: float
    full: float


@shows_options()
@isolated()
def split_half_reliability(x: Samples, **options: Unpack[Options]) -> Reliability:
    """Measure how reliably the pairs of `x [M, N]` are ranked.

    Args:
        x, options: see `mutual_information`; `seed` also draws the halves. If M is odd, one sample is left out.

    Raises:
        TypeError, ValueError: see `mutual_information`; ValueError for fewer than 16 samples or 3 variables, or if all
            pairs have the same value in one half.
    """
    options = plain(options)
    xs = as_samples(x, "x", options.get("device"), min_samples=2 * MIN_SAMPLES)
    if xs.shape[1] < 3:
        raise ValueError(f"x: expected at least 3 variables (columns) to rank, got shape {list(xs.shape)}")
    xs = read_values(xs, "x")
    half = len(xs) // 2
    seed = options.get("seed", 0)
    order = torch.randperm(len(xs), generator=torch.Generator().manual_seed(seed % 2**64)).to(xs.device)
    a = mutual_information(xs[order[:half]], **options)
    # Another seed: equal values ranked in the same order in both halves would look like agreement.
    b = mutual_information(xs[order[half : 2 * half]], **(options | {"seed": seed + 1}))
    return reliability_of_halves(a, b, 2 * half)


@isolated()
def reliability_of_halves(a: Tensor, b: Tensor, n_samples: int) -> Reliability:
    """The reliability, from the symmetric matrices `a` and `b [N, N]` of two halves of `n_samples` samples."""
    row, col = torch.triu_indices(len(a), len(a), offset=1, device=a.device)
    r = _spearman(a[row, col], b[row, col])
    return Reliability(n_samples, r, 2 * r / (1 + r) if r > -1 else -1.0)


def samples_for(reliability: Reliability, target: float = 0.9) -> int:
    """The number of samples at which two draws are expected to rank the pairs with a correlation of `target`.

    Raises:
        ValueError: `target` is not between 0 and 1, or the rankings of the halves are not positively correlated.
    """
    target = real(target, "target", "a correlation between 0 and 1")
    if not 0 < target < 1:
        raise ValueError(f"target: expected a correlation between 0 and 1, got {target!r}")
    r = reliability.halves
    if not r > 0:
        raise ValueError(f"reliability: expected halves that correlate positively, got {r:.3g}")
    if r >= 1:
        return reliability.n_samples // 2
    return math.ceil(reliability.n_samples / 2 * target * (1 - r) / (r * (1 - target)))


def _spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of `a [P]` and `b [P]`; equal values share their mean rank."""
    ranks = torch.stack([_mean_ranks(a), _mean_ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    if not bool((norms > 0).all()):
        raise ValueError("x: expected pairs of different mutual information, got the same value for all")
    return float((centred[0] * centred[1]).sum() / (norms[0] * norms[1]))


def _mean_ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2).double()[place]
