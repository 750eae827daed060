"""Thresholds of mutual information as users write them: in nats, or `"null:q"`, a quantile of independent neurons."""

import math

from mikernels import null_distribution
from mikernels.options import Estimator
from mikernels.statistics.null import LEAST_EXCEEDANCES

DRAWS = 20_000
"""Enough for the thresholds of pruning, in a fraction of a second."""


def null_level(threshold: str) -> float:
    """The q of a threshold `"null:q"`, such as `"null:0.999"`.

    Raises:
        ValueError: a threshold of another form, or q is not between 0 and 1.
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
    """The nats of a threshold `"null:q"`: a quantile of `mikernels.null_distribution`, with as many draws as it needs.

    Raises:
        ValueError: see `null_level` and `mikernels.null_distribution`.
    """
    q = null_level(threshold)
    draws = max(DRAWS, round(LEAST_EXCEEDANCES / (1 - q)))
    return null_distribution(n_samples, estimator=estimator, nodes=nodes, draws=draws, seed=seed).quantile(q)
