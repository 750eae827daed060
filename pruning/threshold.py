"""Thresholds of mutual information as users write them: in nats, or `"null:q"`, a quantile of independent neurons."""

import math

from torch import Tensor

from mikernels import Null, null_distribution, shifted_null
from mikernels.options import Estimator, Problem
from mikernels.statistics.null import LEAST_EXCEEDANCES
from mikernels.transforms import transform_samples

DRAWS = 20_000
"""Enough for the thresholds of pruning, in a fraction of a second."""
COLUMNS = 64
"""Neurons that tell whether the values of a layer repeat."""


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
    threshold: str, sample: Tensor, *, estimator: Estimator, nodes: int, seed: int = 0
) -> float:
    """The nats of a threshold `"null:q"`: a quantile of independent neurons, from as many draws as it needs.

    Args:
        sample: `[M, N]` activations. Where values such as zeros of a ReLU stand out, it shifts them
            (`mikernels.shifted_null`); otherwise M alone matters (`mikernels.null_distribution`).

    Raises:
        ValueError: see `null_level` and `mikernels.null_distribution`.
    """
    q = null_level(threshold)
    return layer_null(q, sample, estimator=estimator, nodes=nodes, seed=seed).quantile(q)


def layer_null(q: float, sample: Tensor, *, estimator: Estimator, nodes: int, seed: int = 0) -> Null:
    """What independent neurons of a layer share, from as many draws as its quantile `q` needs.

    Args, Raises: see `null_threshold`.
    """
    draws = max(DRAWS, round(LEAST_EXCEEDANCES / (1 - q)))
    most_atoms = Problem(estimator, nodes, 0.0).most_atoms
    if transform_samples(sample[:, :COLUMNS], "rank", seed=seed, most_atoms=most_atoms).has_atoms:
        return shifted_null(sample, estimator=estimator, nodes=nodes, draws=draws, seed=seed)
    return null_distribution(len(sample), estimator=estimator, nodes=nodes, draws=draws, seed=seed)
