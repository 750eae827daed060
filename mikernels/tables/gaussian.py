"""Mean estimates for Gaussian copulas with the default options, from a table over the number of samples."""

import json
import math
from importlib.resources import files

import torch
from torch import Tensor

from mikernels.caches import cached
from mikernels.options import Problem, make_problem

NODES = 16
"""The table holds `grid` for this number of nodes."""
CONVERGED = ("grid", "adaptive")
"""Estimators whose kernels no longer depend on M at the end of the table. At twice the last M a simulation, which takes
half a minute, differs from the last entry by at most 0.002 nats, and by 0.0003 below 0.6 nats."""
MOST_NATS = 6.5
POINTS = 41


def gaussian_nats() -> Tensor:
    """The mutual information of the copulas, `[P]` float64 on the CPU: nats, ascending from 0, densest near 0."""
    return MOST_NATS * torch.linspace(0, 1, POINTS, dtype=torch.float64, device="cpu").square()


def tabulated_estimates(n_samples: int, problem: Problem) -> Tensor | None:
    """Mean estimates `[P]` (nats, float64, on the CPU) at the points of `gaussian_nats`.

    Linear in log M between the entries of the table. Beyond them the last one, for `CONVERGED` estimators. None if the
    bandwidth or the nodes are not the default ones, or M lies outside of the table.
    """
    default = make_problem(problem.estimator, NODES, None, n_samples)
    if problem.bandwidth != default.bandwidth or (problem.estimator == "grid" and problem.nodes != NODES):
        return None
    rows = _table()[problem.estimator]
    below = max((m for m in rows if m <= n_samples), default=None)
    if below is None:
        return None
    last = below if problem.estimator in CONVERGED else None
    above = min((m for m in rows if m >= n_samples), default=last)
    if above is None:
        return None
    if below == above:
        return rows[below]
    return torch.lerp(rows[below], rows[above], math.log(n_samples / below) / math.log(above / below))


@cached(maxsize=1)
def _table() -> dict[str, dict[int, Tensor]]:
    """By estimator and M; `benchmarks/accuracy/gaussian_curves.py` makes the file."""
    text = files(__package__).joinpath("gaussian.json").read_text()
    return {
        estimator: {int(m): torch.tensor(row, dtype=torch.float64, device="cpu") for m, row in rows.items()}
        for estimator, rows in json.loads(text).items()
    }
