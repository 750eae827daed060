"""The definition of every estimator, in plain float64. All other implementations are tested against these.

A file holds the equations of one estimator. The inputs are normal scores of ranks or standardized values; h is the
bandwidth and `k(u) = exp(-u^2 / (2 h^2))`, whose normalization cancels in every formula. A sample of atom a (a value
that many samples share, `mikernels.atoms`) is a complex number with the imaginary part a + 1. Nothing is smoothed
between atoms, or between an atom and the other samples.

These modules import nothing of the package but `mikernels.options`, and only the engine imports them: the reference
shares no code, and so no mistake, with what it judges. They favor short code over speed and
memory: use them for small inputs.
"""

import torch
from torch import Tensor

from mikernels.options import Problem
from mikernels.reference.adaptive import adaptive
from mikernels.reference.grid import grid
from mikernels.reference.kde import kde
from mikernels.reference.renyi2 import renyi2


def mutual_information(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """Estimate the mutual information of every row of `x [N, M]` with every row of `y [K, M]`.

    Args:
        x, y: ranks 0..M-1 and -1 - a for atom a, as integers; or standardized values.

    Returns:
        `[N, K]` nats, float64.
    """
    estimate = {"grid": grid, "kde": kde, "renyi2": renyi2, "adaptive": adaptive}[problem.estimator]
    return estimate(values(x), values(y), problem)


def values(data: Tensor) -> Tensor:
    """What the equations take, complex128.

    Normal scores `Phi^-1((r + 1/2) / M)` of ranks r, 0 + (a + 1) i in atom a, other numbers as they are.
    """
    if data.is_floating_point():
        return torch.complex(data.double(), torch.zeros_like(data, dtype=torch.float64))
    scores = torch.special.ndtri((data.double() + 0.5) / data.shape[1])
    return torch.complex(scores.where(data >= 0, 0.0), data.double().neg().clamp(min=0))
