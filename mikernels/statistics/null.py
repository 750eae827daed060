"""The null distribution: the estimates for independent variables, and p-values and thresholds that follow from it.

`mikernels.statistics.surrogates` makes it. From its upper percent on a null goes on as a generalized Pareto
distribution with the mean and the variance of that percent, so p-values have no floor. Far beyond the draws it is an
extrapolation. A p-value is never below the share of the draws that reach the estimate, as long as they are enough to
tell: a fit of all draws need not fit every part, such as the upper end of a mixture. A null of few values, such as that
of binary columns, has no fitted tail.

Source: J. Pickands, Statistical inference using extreme order statistics, Ann. Stat. 3 (1975),
DOI 10.1214/aos/1176343003; J. R. M. Hosking, J. R. Wallis, Parameter and quantile estimation for the generalized
Pareto distribution, Technometrics 29 (1987), DOI 10.1080/00401706.1987.10488243.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mikernels.arrays import Samples, shaped_as_given
from mikernels.errors import SamplesValueError
from mikernels.isolation import isolated
from mikernels.numbers import real
from mikernels.provenance import Provenance, describe, recall
from mikernels.validation import as_tensor

TAIL_SHARE = 0.01
"""Of the draws, in the fitted tail."""
LEAST_TAIL = 100
"""Draws that a fitted tail needs."""
MOST_EQUAL = 0.25
"""Of these, the largest share with one value. A continuous tail is wrong by a third at most at such a step."""
LEAST_EXCEEDANCES = 10
"""Draws above an estimate that tell its probability, to a third."""
ROUNDING = 2e-6
"""Nats, at most, by which equal tables differ whose sums were taken in another order."""

LEAST = torch.finfo(torch.float64).tiny
"""A probability below it would be rounded to 0, and its logarithm to infinity: as that of 0.3 nats at M = 4096."""


class Tail(NamedTuple):
    """`P(mi > t) = share (1 + shape (t - start) / scale)^(-1 / shape)` for t above the start."""

    start: float  # nats
    share: float
    shape: float  # at least 0: an exponential tail, which is that of the sums behind an estimate, or a heavier one
    scale: float  # nats

    def probability(self, mi: Tensor) -> Tensor:
        """Of estimates at or above `mi`, float64 of any shape; only for those beyond the start. At least `LEAST`."""
        excess = (mi.double() - self.start) / self.scale
        if self.shape == 0:
            return (self.share * (-excess).exp()).clamp(min=LEAST)
        return (self.share * (1 + self.shape * excess.clamp(min=0)) ** (-1 / self.shape)).clamp(min=LEAST)

    def quantile(self, probability: float) -> float:
        """The nats that are exceeded with a probability below the share."""
        log_ratio = math.log(self.share / probability)
        steps = log_ratio if self.shape == 0 else math.expm1(self.shape * log_ratio) / self.shape
        return self.start + self.scale * steps


@dataclass(frozen=True, eq=False)
class Null:
    """Estimates for independent variables.

    Attributes:
        made_with: what the estimates were made with, by name: `n_samples` (M), `estimator`, `transform`,
            `bandwidth`, `calibrate`, and `nodes` for `grid`. Estimates of `mutual_information` and `top_pairs` that
            were made with anything else are refused. Numbers and results of operations cannot be checked.
        values: `[D]` float32 on the CPU, nats, ascending.
        for_atoms: whether it is for columns with atoms, too: a value that 2 % of the samples share and that stands out
            (`mikernels.atoms`). Otherwise estimates of those are refused.
    """

    made_with: Provenance
    values: Tensor
    for_atoms: bool = False

    @cached_property
    def tail(self) -> Tail | None:
        """The fitted upper tail, or None for fewer than 10,000 draws, or if a quarter of it is one value."""
        n_tail = int(TAIL_SHARE * len(self.values))
        top = self.values[len(self.values) - n_tail :].double()
        place = torch.arange(n_tail, device=top.device)
        equal = torch.searchsorted(top, top + self._rounding, right=True) - place
        if n_tail < LEAST_TAIL or int(equal.max()) > MOST_EQUAL * n_tail:
            return None
        start = float(self.values[-n_tail - 1])
        excess = top - start
        mean, variance = float(excess.mean()), float(excess.var())
        shape = max(0.0, 0.5 * (1 - mean**2 / variance))
        return Tail(start, (1 + n_tail) / (1 + len(self.values)), shape, mean * (1 - shape))

    @cached_property
    def _rounding(self) -> float:
        """Nats within which two estimates are equal; next to nothing beside the spread of the null."""
        spread = float(self.values[-1] - self.values[len(self.values) // 2])
        return min(ROUNDING, spread / 1000)

    def quantile(self, q: float) -> float:
        """The estimate, in nats, that independent variables exceed with probability 1 - q.

        Raises:
            ValueError: q is not between 0 and 1, or fewer than 10 draws are expected above it and there is no fitted
                tail.
        """
        q = real(q, "q", "a probability between 0 and 1")
        if not 0 < q < 1:
            raise ValueError(f"q: expected a probability between 0 and 1, got {q!r}")
        count = len(self.values)
        if self.tail is not None and 1 - q < self.tail.share:
            known = self.values[min(int(q * count), count - LEAST_EXCEEDANCES)]
            return max(self.tail.quantile(1 - q), float(known))
        needed = round(LEAST_EXCEEDANCES / (1 - q))
        if count < needed:
            raise ValueError(
                f"q: expected at least {needed} draws for the quantile {q}, got {count}; use a lower quantile, or make "
                f"the null with more draws, which for a series takes more columns or more samples"
            )
        # As many draws lie above it as a share of 1 - q allows.
        return float(self.values[min(count - 1, int(q * count))])

    def p_value(self, mi: Samples | float) -> Any:
        """Probability that independent variables reach `mi` (nats, a number or an array of any shape), float64, of the
        kind and shape of `mi`; a tensor for a number.

        `(1 + draws at or above) / (1 + draws)`. In the upper percent it is that of the fitted tail if that is larger,
        and always where fewer than 10 draws lie at or above. It is never 0 but at least 2.2e-308.

        Raises:
            ValueError: NaN, or estimates that were made with other options or another number of samples.

        Source: B. Phipson, G. K. Smyth, Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol. 9
        (2010), DOI 10.2202/1544-6115.1585.
        """
        with isolated():
            found = self._p_value(self._read(mi))
        return shaped_as_given(found, mi)

    @isolated()
    def fdr_threshold(self, mi: Samples, rate: float) -> float:
        """The estimate, in nats, at and above which at most a share `rate` of the pairs is expected to be independent.

        Runs the step-up procedure over the pairs of `mi [N, K]`: of one set of variables with itself those above the
        diagonal, and otherwise all, such as of variables with earlier values of themselves. Results of
        `mutual_information` remember which it is; any other matrix is of one set if it is symmetric but for rounding.
        Infinite if no pair passes. Without a fitted tail (see `tail`) no p-value is below 1 / (D + 1), and a few
        dependent pairs among many cannot pass.

        Raises:
            ValueError: `mi` is not a matrix with a pair, `rate` is not between 0 and 1, or see `p_value`.

        Source: Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, J. R. Stat. Soc. B 57 (1995),
        DOI 10.1111/j.2517-6161.1995.tb02031.x.
        """
        one_set = (recall(mi) or {}).get("one_set")
        mi, rate = self._read(mi), real(rate, "rate", "a share between 0 and 1")
        if mi.ndim != 2 or mi.numel() < 1 or mi.shape == (1, 1):
            raise SamplesValueError(
                f"mi: expected a matrix of the pairs of 2 or more variables, got {list(mi.shape)}"
            )
        if not 0 < rate < 1:
            raise ValueError(f"rate: expected a share between 0 and 1, got {rate!r}")
        pairs = _pairs_of(mi, one_set).sort(descending=True).values
        passed = (q_values(self._p_value(pairs), len(pairs)) <= rate).nonzero()
        return float(pairs[passed[-1, 0]]) if len(passed) else float("inf")

    def _p_value(self, estimates: Tensor) -> Tensor:
        values = self.values.to(estimates.device)
        at_or_above = len(values) - torch.searchsorted(values, estimates - self._rounding)
        share = (1 + at_or_above.double()) / (1 + len(values))
        if self.tail is None:
            return share
        fitted = self.tail.probability(estimates)
        fitted = torch.where(at_or_above < LEAST_EXCEEDANCES, fitted, fitted.maximum(share))
        return torch.where(estimates > self.tail.start, fitted, share)

    def _read(self, mi: Samples | float) -> Tensor:
        """`mi` as float32 of the same shape, if it can be from the estimator of this null."""
        made = recall(mi) or {}
        with_atoms = bool(made.get("atoms", False))
        made = {name: value for name, value in made.items() if name not in ("atoms", "one_set")}
        if with_atoms and not self.for_atoms:
            raise ValueError(
                "mi: expected estimates of columns without a value that many samples share, such as zeros of a ReLU, "
                "got some with one; use permuted_null(x), or shifted_null(x) for a series, which have their tables"
            )
        if made and made != self.made_with:
            raise ValueError(
                f"mi: expected estimates made with {describe(self.made_with)}, as the null was, got "
                f"{describe(made)}; make the null with the options and the number of samples of the estimates"
            )
        array = torch.tensor(mi, dtype=torch.float64) if isinstance(mi, int | float) else as_tensor(mi, "mi")
        estimates = array.float().contiguous()
        if bool(torch.isnan(estimates).any()):  # it would count as above every draw
            raise SamplesValueError("mi: expected estimates in nats, got NaN")
        return estimates


def _pairs_of(mi: Tensor, one_set: Tensor | bool | None) -> Tensor:
    """All pairs `[P]` in a matrix `[N, K]`, those of one set of variables once.

    Args:
        one_set: whether it is of one; None if that is not known.
    """
    if not (_looks_like_one_set(mi) if one_set is None else one_set):
        return mi.flatten()
    row, col = torch.triu_indices(len(mi), len(mi), offset=1, device=mi.device)
    return mi[row, col]


def _looks_like_one_set(mi: Tensor) -> bool:
    """A matrix that was estimated as that of x and y = x is symmetric but for rounding and the order of equal values,
    with the largest values on its diagonal."""
    if mi.shape[0] != mi.shape[1]:
        return False
    nearly = bool((mi.diagonal() >= mi.amax(1)).all()) and torch.allclose(mi, mi.t(), rtol=1e-2, atol=1e-5)
    return nearly or torch.equal(mi, mi.t())


def q_values(p_values: Tensor, n_pairs: int) -> Tensor:
    """The least rates of false discoveries at which pairs pass the step-up procedure, float64.

    Args:
        p_values: `[P]` ascending, of the most significant of all pairs.
        n_pairs: the number of all pairs. If P is less, values are never below those among all of them.

    Source: see `Null.fdr_threshold`.
    """
    rank = torch.arange(1, len(p_values) + 1, device=p_values.device, dtype=torch.float64)
    return (p_values * n_pairs / rank).flip(0).cummin(0).values.flip(0).clamp(max=1.0)
