"""Pairwise mutual information of many variables by kernel density estimation, in nats."""

from mikernels.api import mutual_information, pairs_above, top_pairs, workspace_bytes
from mikernels.caches import clear_caches
from mikernels.errors import MikernelsError, RankError, SamplesError, UnsupportedError, WorkspaceError
from mikernels.memory import Workspace
from mikernels.options import Options
from mikernels.pairs import Pairs
from mikernels.statistics.gaussian import gaussian_conditional_information
from mikernels.statistics.null import Null
from mikernels.statistics.reliability import Reliability, samples_for, split_half_reliability
from mikernels.statistics.surrogates import null_distribution, permuted_null, shifted_null
from mikernels.statistics.units import bits, information_correlation
from mikernels.stream import GridStream
from mikernels.version import __version__

__all__ = [
    "GridStream",
    "MikernelsError",
    "Null",
    "Options",
    "Pairs",
    "RankError",
    "Reliability",
    "SamplesError",
    "UnsupportedError",
    "Workspace",
    "WorkspaceError",
    "__version__",
    "bits",
    "clear_caches",
    "gaussian_conditional_information",
    "information_correlation",
    "mutual_information",
    "null_distribution",
    "pairs_above",
    "permuted_null",
    "samples_for",
    "shifted_null",
    "split_half_reliability",
    "top_pairs",
    "workspace_bytes",
]
