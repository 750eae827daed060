"""The null distribution: the estimates for independent variables, and thresholds that follow from it.

Under the rank transform every variable without ties is a permutation of the same M scores. The estimates for
independent variables therefore follow one distribution, which depends only on M and the estimator. It is simulated
once, from random permutations, by the code that makes the estimates themselves.
"""

from dataclasses import dataclass
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from mikernels.api import Samples, mutual_information
from mikernels.caches import cached
from mikernels.isolation import isolated
from mikernels.numbers import integer, real
from mikernels.options import Options, plain, shows_options
from mikernels.validation import MIN_SAMPLES, as_tensor

LEAST_EXCEEDANCES = 10
"""Draws that must be expected above a quantile. With 10, its level is known to about a third of its value."""


@dataclass(frozen=True)
class Null:
    """Estimates for independent variables.

    Attributes:
        n_samples: M.
        values: `[D]` float32 on the CPU, nats, ascending.
    """

    n_samples: int
    values: Tensor

    def quantile(self, q: float) -> float:
        """The estimate, in nats, that independent variables exceed with probability 1 - q.

        Raises:
            ValueError: q is not between 0 and 1, or fewer than 10 draws are expected above it.
        """
        q = real(q, "q", "a probability between 0 and 1")
        if not 0 < q < 1:
            raise ValueError(f"q: expected a probability between 0 and 1, got {q!r}")
        needed = round(LEAST_EXCEEDANCES / (1 - q))
        if len(self.values) < needed:
            raise ValueError(
                f"q: expected at least {needed} draws for the quantile {q}, got {len(self.values)}; ask "
                f"null_distribution for more draws"
            )
        # As many draws lie above it as a share of 1 - q allows.
        return float(self.values[min(len(self.values) - 1, int(q * len(self.values)))])

    @isolated()
    def p_value(self, mi: Samples | float) -> Tensor:
        """Probability that independent variables reach `mi` (nats, a number or an array of any shape), float64.

        `(1 + draws at or above) / (1 + draws)`, which is never 0: B. Phipson, G. K. Smyth, Permutation p-values should
        never be zero, Stat. Appl. Genet. Mol. Biol. 9 (2010), DOI 10.2202/1544-6115.1585.
        """
        estimates = _read_estimates(mi)
        values = self.values.to(estimates.device)
        at_or_above = len(values) - torch.searchsorted(values, estimates)
        return (1 + at_or_above.double()) / (1 + len(values))

    @isolated()
    def fdr_threshold(self, mi: Samples, rate: float) -> float:
        """The estimate, in nats, at and above which at most a share `rate` of the pairs is expected to be independent.

        Runs the step-up procedure over the pairs above the diagonal of `mi [N, N]`. Infinite if no pair passes.
        No p-value is below 1 / (D + 1), so finding a few dependent pairs among many needs a large number of draws D.

        Raises:
            ValueError: `mi` is not a square matrix, or `rate` is not between 0 and 1.

        Source: Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, J. R. Stat. Soc. B 57 (1995),
        DOI 10.1111/j.2517-6161.1995.tb02031.x.
        """
        mi, rate = _read_estimates(mi), real(rate, "rate", "a share between 0 and 1")
        if mi.ndim != 2 or mi.shape[0] != mi.shape[1] or len(mi) < 2:
            raise ValueError(f"mi: expected a square matrix of 2 or more variables, got {list(mi.shape)}")
        if not 0 < rate < 1:
            raise ValueError(f"rate: expected a share between 0 and 1, got {rate!r}")
        row, col = torch.triu_indices(len(mi), len(mi), offset=1, device=mi.device)
        pairs = mi[row, col].sort(descending=True).values
        allowed = rate * torch.arange(1, len(pairs) + 1, device=mi.device, dtype=torch.float64) / len(pairs)
        passed = (self.p_value(pairs) <= allowed).nonzero()
        return float(pairs[passed[-1, 0]]) if len(passed) else float("inf")


def _read_estimates(mi: Samples | float) -> Tensor:
    """`mi` as float32 of the same shape; ValueError for NaN, which would count as above every draw."""
    array = torch.tensor(mi, dtype=torch.float64) if isinstance(mi, int | float) else as_tensor(mi, "mi")
    estimates = array.float().contiguous()
    if bool(torch.isnan(estimates).any()):
        raise ValueError("mi: expected estimates in nats, got NaN")
    return estimates


DRAWS = 20_000


@shows_options(estimator="adaptive")
def null_distribution(n_samples: int, *, draws: int = DRAWS, **options: Unpack[Options]) -> Null:
    """Simulate what `mutual_information` estimates for independent variables with these options. Cached.

    Args:
        n_samples: M, at least 8.
        draws: D, the least number of pairs of independent variables.
        options: see `mutual_information`; `estimator` is `"adaptive"` by default, and `seed` also draws the
            permutations. `transform` must be `"rank"`, and `bandwidth="loo"` is refused, since it would choose
            another bandwidth here than for a layer.

    Raises:
        ValueError: fewer than 8 samples, no draws, an option that has no null, or what `mutual_information` raises.
    """
    n_samples, draws, options = integer(n_samples, "n_samples"), integer(draws, "draws"), plain(options)
    if options.get("bandwidth") == "loo":
        raise ValueError("bandwidth: expected a number or a rule that sees no samples for a null, got 'loo'")
    if options.get("transform", "rank") != "rank":
        raise ValueError(f"transform: expected 'rank' for a null, got {options['transform']!r}")
    if n_samples < MIN_SAMPLES:
        raise ValueError(f"n_samples: expected at least {MIN_SAMPLES}, got {n_samples}")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    return _simulate(n_samples, draws, tuple(sorted(options.items())))


@cached(maxsize=32)
@isolated()
def _simulate(n_samples: int, draws: int, items: tuple[tuple[str, Any], ...]) -> Null:
    """The null of checked arguments."""
    options = cast(Options, dict(items))
    # All pairs of N variables: any two pairs are independent of each other, even if they share a variable.
    n_variables = 2
    while n_variables * (n_variables - 1) // 2 < draws:
        n_variables += 1
    generator = torch.Generator().manual_seed(options.get("seed", 0) % 2**64)
    x = torch.rand(n_samples, n_variables, generator=generator, dtype=torch.float64)
    defaults: Options = {"estimator": "adaptive"}
    mi = mutual_information(x, **(defaults | options))
    row, col = torch.triu_indices(n_variables, n_variables, offset=1)
    return Null(n_samples, mi[row, col].sort().values.cpu())
