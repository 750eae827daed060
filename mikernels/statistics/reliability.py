"""How reliable a ranking of pairs is, from the matrices of disjoint parts of the samples.

A ranking that another draw of samples would not reproduce is noise. Comparing two halves measures the agreement r at
M / 2 samples, and comparing quarters that at M / 4. The two are extrapolated by

    1 / r(M) = a + b / M,    a >= 1.

With a = 1 this is the formula of Spearman and Brown, which is exact for product-moment correlations if the variance of
the noise falls as 1 / M and there is no other. An estimator whose bandwidth shrinks with M, and samples that depend on
each other, leave disagreement that falls more slowly; a > 1 accounts for it. From halves alone a is 1.

Rows from one document resemble each other. If they lie in both halves, these agree better than two draws of documents
would: name the document of each row in `groups`, and every group stays in one part.

Source: C. Spearman, Correlation calculated from faulty data, Br. J. Psychol. 3 (1910),
DOI 10.1111/j.2044-8295.1910.tb00206.x; W. Brown, Some experimental results in the correlation of mental abilities,
ibid., DOI 10.1111/j.2044-8295.1910.tb00207.x.
"""

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from mikernels.api import mutual_information
from mikernels.arrays import Samples
from mikernels.errors import SamplesValueError
from mikernels.frames import check_order
from mikernels.isolation import isolated
from mikernels.numbers import real
from mikernels.options import Options, plain, shows_options
from mikernels.validation import MIN_SAMPLES, as_samples, as_tensor, read_values


class Reliability(NamedTuple):
    """Agreement between the rankings from two draws of samples, from -1 to 1.

    Attributes:
        n_samples: M, of both halves together.
        halves: Spearman's correlation over pairs between the halves, each of M / 2 samples.
        full: the correlation expected between two draws of M samples.
        quarters: the mean correlation between two pairs of quarters, at M / 4 samples: groups of unequal size leave
            smaller quarters, from which it follows by the formula above. None if there are too few samples or groups.
    """

    n_samples: int
    halves: float
    full: float
    quarters: float | None = None

    @property
    def limit(self) -> float:
        """The correlation expected between two draws of any number of samples, 1 / a."""
        if self.quarters is None or self.quarters <= 0 or self.halves <= 0:
            return 1.0
        return 1 / max(1.0, 2 / self.halves - 1 / min(self.quarters, self.halves))


@shows_options()
@isolated()
def split_half_reliability(
    x: Samples, *, groups: Samples | None = None, **options: Unpack[Options]
) -> Reliability:
    """Measure how reliably the pairs of `x [M, N]` are ranked.

    Args:
        x, options: see `mutual_information`; `seed` also draws the parts. Rows that would make the halves unequal are
            left out.
        groups: `[M]` integers, the same for rows that belong together, such as the tokens of a document.

    Raises:
        TypeError, ValueError: see `mutual_information`; ValueError for fewer than 16 samples or 3 variables, for groups
            that do not fill two halves with 8 samples, or if all pairs have the same value in one half.
    """
    options = plain(options)
    xs = as_samples(x, "x", options.get("device"), min_samples=2 * MIN_SAMPLES)
    if xs.shape[1] < 3:
        raise SamplesValueError(
            f"x: expected at least 3 variables (columns) to rank, got shape {list(xs.shape)}"
        )
    xs = read_values(xs, "x", check=options.get("check_finite", True))
    seed = options.get("seed", 0)
    generator = torch.Generator().manual_seed(seed % 2**64)
    if groups is None:
        order = torch.randperm(len(xs), generator=generator)
        size = len(xs) // 2
        halves = [order[:size], order[size : 2 * size]]
        quarters = [part[: size // 2] for part in (*halves, halves[0].flip(0), halves[1].flip(0))]
    else:
        check_order(x, groups, "groups")
        quarters = _parts(_read_groups(groups, len(xs)), 4, generator)
        halves = [torch.cat(quarters[0::2]), torch.cat(quarters[1::2])]
    if min(map(len, halves)) < MIN_SAMPLES:
        raise SamplesValueError(
            f"groups: expected groups that fill two halves with at least {MIN_SAMPLES} samples each, got halves of "
            f"{len(halves[0])} and {len(halves[1])}"
        )

    def agreement(rows: list[Tensor]) -> float:
        size = min(map(len, rows))
        # Other seeds: equal values ranked in the same order in both parts would look like agreement.
        a, b = (
            mutual_information(xs[r[:size].to(xs.device)], **(options | {"seed": seed + i}))
            for i, r in enumerate(rows)
        )
        return reliability_of_halves(a, b, 2 * size).halves

    r, half, quarter = agreement(halves), min(map(len, halves)), min(map(len, quarters))
    if quarter < MIN_SAMPLES:
        return _extrapolated(2 * half, r, None)
    quarters = [part[:quarter] for part in quarters]
    measured = (agreement(quarters[:2]) + agreement(quarters[2:])) / 2
    return _extrapolated(2 * half, r, _at_half(r, measured, quarter / half))


def _read_groups(groups: Samples, n_samples: int) -> Tensor:
    labels = as_tensor(groups, "groups").cpu()
    if labels.shape != (n_samples,):
        raise SamplesValueError(
            f"groups: expected one label for each of {n_samples} samples, got shape {list(labels.shape)}"
        )
    if bool(labels.isnan().any()):  # each would be a group of its own
        raise SamplesValueError("groups: expected a label for each sample, got NaN")
    return labels.unique(return_inverse=True)[1]


def _parts(labels: Tensor, n_parts: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of whole groups in parts of about one size: groups in random order, each to the smallest part so far."""
    sizes = labels.bincount()
    total = [0] * n_parts
    part_of = torch.zeros(len(sizes), dtype=torch.int64)
    for group in torch.randperm(len(sizes), generator=generator).tolist():
        part = total.index(min(total))
        part_of[group] = part
        total[part] += int(sizes[group])
    order = torch.randperm(len(labels), generator=generator)
    return [order[part_of[labels[order]] == part] for part in range(n_parts)]


def _at_half(r: float, measured: float, share: float) -> float:
    """The agreement at half as many samples as that of `r`, from the agreement at a share of them, at most a half."""
    if r <= 0 or measured <= 0:
        return measured
    return 1 / (1 / r + (1 / measured - 1 / r) * share / (1 - share))


def _extrapolated(n_samples: int, halves: float, quarters: float | None) -> Reliability:
    """With the correlation expected at M: `1 / r` falls by b / M between M / 2 and M."""
    measured = Reliability(n_samples, halves, 0.0, quarters)
    if halves <= 0:
        return measured._replace(full=2 * halves / (1 + halves) if halves > -1 else -1.0)
    return measured._replace(full=2 / (1 / halves + 1 / measured.limit))


@isolated()
def reliability_of_halves(a: Tensor, b: Tensor, n_samples: int) -> Reliability:
    """The reliability, from the symmetric matrices `a` and `b [N, N]` of two halves of `n_samples` samples."""
    row, col = torch.triu_indices(len(a), len(a), offset=1, device=a.device)
    return _extrapolated(n_samples, _spearman(a[row, col], b[row, col]), None)


def samples_for(reliability: Reliability, target: float = 0.9) -> int:
    """The number of samples at which two draws are expected to rank the pairs with a correlation of `target`.

    Raises:
        ValueError: `target` is not between 0 and 1 or above `reliability.limit`, or the rankings of the halves are not
            positively correlated.
    """
    target = real(target, "target", "a correlation between 0 and 1")
    if not 0 < target < 1:
        raise ValueError(f"target: expected a correlation between 0 and 1, got {target!r}")
    r, limit = reliability.halves, reliability.limit
    if not r > 0:
        raise ValueError(f"reliability: expected halves that correlate positively, got {r:.3g}")
    if target >= limit:
        raise ValueError(
            f"target: expected less than {limit:.3g}, to which the agreement tends with more samples, got {target!r}"
        )
    if r >= limit:
        return reliability.n_samples // 2
    return math.ceil(reliability.n_samples / 2 * (1 / r - 1 / limit) / (1 / target - 1 / limit))


def _spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of `a [P]` and `b [P]`; equal values share their mean rank."""
    ranks = torch.stack([_mean_ranks(a), _mean_ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    if not bool((norms > 0).all()):
        raise SamplesValueError(
            "x: expected pairs of different mutual information, got the same value for all"
        )
    return float((centred[0] * centred[1]).sum() / (norms[0] * norms[1]))


def _mean_ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2).double()[place]
