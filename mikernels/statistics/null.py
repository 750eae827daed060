"""The null: what an estimator says of independent variables, and what follows for thresholds.

Under the rank transform a variable without ties is a permutation of the same M scores, so that the estimates of
independent variables have one distribution for all of them, which depends on M and the estimator only. It is
simulated once, from random permutations, through the same code as the estimates themselves.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mikernels.api import mutual_information
from mikernels.options import Estimator
from mikernels.validation import MIN_SAMPLES

LEAST_EXCEEDANCES = 10
"""Draws that should lie above a quantile; with 10 its level is known to about a third of it."""


@dataclass(frozen=True)
class Null:
    """Estimates of independent variables.

    Attributes:
        n_samples: M.
        values: `[D]` float32 on the CPU, nats, ascending.
    """

    n_samples: int
    values: Tensor

    def quantile(self, q: float) -> float:
        """Nats that independent variables exceed with probability 1 - q.

        Raises:
            ValueError: q is not between 0 and 1, or fewer than 10 draws are expected above it.
        """
        if not 0 < q < 1:
            raise ValueError(f"q: expected a probability between 0 and 1, got {q!r}")
        needed = round(LEAST_EXCEEDANCES / (1 - q))
        if len(self.values) < needed:
            raise ValueError(f"q: the quantile {q} expects at least {needed} draws, got {len(self.values)}")
        # The number of draws above it is the largest that a share of 1 - q allows.
        return float(self.values[min(len(self.values) - 1, int(q * len(self.values)))])

    def p_value(self, mi: Tensor) -> Tensor:
        """Probability that independent variables show as much as `mi` (nats, any shape), float64.

        `(1 + draws at or above) / (1 + draws)`, never 0: B. Phipson, G. K. Smyth, Permutation p-values should
        never be zero, Stat. Appl. Genet. Mol. Biol. 9 (2010), DOI 10.2202/1544-6115.1585.
        """
        values = self.values.to(mi.device)
        at_or_above = len(values) - torch.searchsorted(values, mi.float().contiguous())
        return (1 + at_or_above.double()) / (1 + len(values))

    def fdr_threshold(self, mi: Tensor, rate: float) -> float:
        """Nats from which on at most a share `rate` of the pairs is expected to be independent.

        The step-up procedure over the pairs above the diagonal of `mi [N, N]`. Infinite where no pair passes;
        p-values end at 1 / (D + 1), so a few dependent pairs among many need that many more draws D.

        Raises:
            ValueError: `mi` is not a square matrix, or `rate` is not between 0 and 1.

        Source: Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, J. R. Stat. Soc. B 57 (1995),
        DOI 10.1111/j.2517-6161.1995.tb02031.x.
        """
        if mi.ndim != 2 or mi.shape[0] != mi.shape[1] or len(mi) < 2:
            raise ValueError(f"mi: expected a square matrix of 2 or more variables, got {list(mi.shape)}")
        if not 0 < rate < 1:
            raise ValueError(f"rate: expected a share between 0 and 1, got {rate!r}")
        row, col = torch.triu_indices(len(mi), len(mi), offset=1, device=mi.device)
        pairs = mi[row, col].sort(descending=True).values
        allowed = rate * torch.arange(1, len(pairs) + 1, device=mi.device, dtype=torch.float64) / len(pairs)
        passed = (self.p_value(pairs) <= allowed).nonzero()
        return float(pairs[passed[-1, 0]]) if len(passed) else float("inf")


DRAWS = 20_000


@functools.lru_cache(maxsize=32)
def null_distribution(
    n_samples: int,
    *,
    estimator: Estimator = "adaptive",
    nodes: int = 16,
    bandwidth: float | str | None = None,
    calibrate: bool | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Null:
    """The null of `mutual_information` with these options under the rank transform, computed once.

    Args:
        n_samples: M, 8 or more.
        estimator, nodes, bandwidth, calibrate: as for `mutual_information`; `bandwidth="loo"` would choose another one
            for independent variables than for a layer, and is refused.
        draws: D, pairs of independent variables, at least.
        seed: of the permutations.

    Raises:
        ValueError: fewer than 8 samples, no draws, `bandwidth="loo"`, or what `mutual_information` raises.
    """
    if bandwidth == "loo":
        raise ValueError("bandwidth: a null expects a number or a rule that sees no samples, got 'loo'")
    if n_samples < MIN_SAMPLES:
        raise ValueError(f"n_samples: expected at least {MIN_SAMPLES}, got {n_samples}")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    # All pairs of N variables: any two of them are independent of each other, also where they share a variable.
    n_variables = 2
    while n_variables * (n_variables - 1) // 2 < draws:
        n_variables += 1
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n_samples, n_variables, generator=generator, dtype=torch.float64)
    mi = mutual_information(
        x, estimator=estimator, nodes=nodes, bandwidth=bandwidth, calibrate=calibrate, seed=seed
    )
    row, col = torch.triu_indices(n_variables, n_variables, offset=1)
    return Null(n_samples, mi[row, col].sort().values)


def null_level(threshold: str) -> float:
    """The q of a threshold `"null:q"`, such as `"null:0.999"`.

    Raises:
        ValueError: not of this form, or q is not between 0 and 1.
    """
    name, _, level = threshold.partition(":")
    try:
        q = float(level) if name == "null" else math.nan
    except ValueError:
        q = math.nan
    if not 0 < q < 1:
        raise ValueError(
            f"threshold: expected nats or 'null:q' with q between 0 and 1, such as 'null:0.999', got {threshold!r}"
        )
    return q


def null_threshold(
    threshold: str, n_samples: int, *, estimator: Estimator, nodes: int, seed: int = 0
) -> float:
    """Nats of a threshold `"null:q"`: the quantile of `null_distribution`, from as many draws as it needs.

    Raises:
        ValueError: as `null_level` and `null_distribution`.
    """
    q = null_level(threshold)
    draws = max(DRAWS, round(LEAST_EXCEEDANCES / (1 - q)))
    return null_distribution(n_samples, estimator=estimator, nodes=nodes, draws=draws, seed=seed).quantile(q)
