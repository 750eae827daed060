"""What nats are in other units."""

import math

from torch import Tensor


def bits(mi: Tensor) -> Tensor:
    """Bits of `mi` nats, of any shape."""
    return mi / math.log(2)


def information_correlation(mi: Tensor) -> Tensor:
    """`sqrt(1 - exp(-2 I))` of `mi` nats, of any shape: from 0 to 1, and |rho| for Gaussian variables.

    Estimates below 0 count as 0.

    Source: E. H. Linfoot, An informational measure of correlation, Inf. Control 1 (1957),
    DOI 10.1016/S0019-9958(57)90116-X.
    """
    return (-(-2 * mi.clamp(min=0)).expm1()).sqrt()
