"""Mutual information in other units."""

import math
from typing import Any

from torch import Tensor

from mikernels.arrays import Samples, shaped_as_given
from mikernels.validation import as_tensor


def bits(mi: Samples) -> Any:
    """Convert `mi`, an array or a table in nats of any shape, to bits; of the same kind."""
    return shaped_as_given(_tensor(mi) / math.log(2), mi)


def information_correlation(mi: Samples) -> Any:
    """Convert `mi`, in nats, to `sqrt(1 - exp(-2 I))`: from 0 to 1, and |rho| for Gaussian variables.

    Takes an array or a table of any shape. Estimates below 0 count as 0. The result is of the same kind.

    Source: E. H. Linfoot, An informational measure of correlation, Inf. Control 1 (1957),
    DOI 10.1016/S0019-9958(57)90116-X.
    """
    return shaped_as_given((-(-2 * _tensor(mi).clamp(min=0)).expm1()).sqrt(), mi)


def _tensor(mi: Samples) -> Tensor:
    return mi if isinstance(mi, Tensor) else as_tensor(mi, "mi")
