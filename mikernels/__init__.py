"""Pairwise mutual information of many variables by kernel density estimation, in nats."""

from mikernels.api import mutual_information, pairs_above, top_pairs
from mikernels.null import Null, null_distribution
from mikernels.pairs import Pairs
from mikernels.stream import GridStream
from mikernels.version import __version__

__all__ = [
    "GridStream",
    "Null",
    "Pairs",
    "__version__",
    "mutual_information",
    "null_distribution",
    "pairs_above",
    "top_pairs",
]
