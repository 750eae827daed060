"""Mutual information in other units."""

import math

from torch import Tensor

from mikernels.api import Samples
from mikernels.validation import as_tensor


def bits(mi: Samples) -> Tensor:
    """Convert `mi`, in nats and of any shape, to bits."""
    return _tensor(mi) / math.log(2)


def information_correlation(mi: Samples) -> Tensor:
    """Convert `mi`, in nats and of any shape, to `sqrt(1 - exp(-2 I))`: from 0 to 1, and |rho| for Gaussian variables.

    Estimates below 0 count as 0.

    Source: E. H. Linfoot, An informational measure of correlation, Inf. Control 1 (1957),
    DOI 10.1016/S0019-9958(57)90116-X.
    """
    return (-(-2 * _tensor(mi).clamp(min=0)).expm1()).sqrt()


def _tensor(mi: Samples) -> Tensor:
    return mi if isinstance(mi, Tensor) else as_tensor(mi, "mi")
