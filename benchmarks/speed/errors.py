"""Errors of a variant's values: no time is reported without them."""

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.speed.cases import Case
from benchmarks.speed.samples import true_mi
from mikernels import mutual_information

COLUMNS = 32  # number of variables whose pairs are compared
REFERENCE_FLOATS = 2**27  # size of one temporary of the float64 references, which allocate a few: 1 GiB each


def references(x: Tensor, case: Case, estimators: set[str]) -> dict[str, Tensor]:
    """The float64 reference of each estimator among the first n columns of `x [M, N]`: `[n, n]` nats.

    n is limited by memory: the reference allocates `[n, M, M]` float64, or `[n, M, G]` for `grid`. An estimator whose
    reference cannot hold two variables is omitted.
    """
    out = {}
    for estimator in sorted(estimators):
        each = case.M * (case.nodes if estimator == "grid" else case.M)
        n = min(COLUMNS, case.N, REFERENCE_FLOATS // each)
        if n >= 2:
            out[estimator] = mutual_information(
                x[:, :n], estimator=estimator, nodes=case.nodes, impl="reference", seed=case.seed
            ).cpu()
    return out


def errors(mi: Tensor, case: Case, references: dict[str, Tensor]) -> dict[str, float]:
    """Errors over the pairs of the first columns of `mi [n, n]`, the values of a variant that computes `case`.

    Returns:
        `rms_to_truth_nats` and `spearman_to_truth` against the closed form; `max_error_nats` against the float64
        reference of the same estimator, and `spearman_to_kde`, the rank agreement with the reference of `kde`, where
        these are given. Rank agreement is omitted for fewer than 10 pairs.
    """
    mi = mi.cpu().double()
    n = min(len(mi), COLUMNS)
    truth, values = _pairs(true_mi(case, n), n), _pairs(mi, n)
    out = {"pairs_compared": len(values), "rms_to_truth_nats": float((values - truth).square().mean().sqrt())}
    if len(values) >= 10:
        out["spearman_to_truth"] = float(spearmanr(values, truth).statistic)
    if (exact := references.get(case.estimator)) is not None:
        n = min(len(mi), len(exact))
        out["max_error_nats"] = float((_pairs(mi, n) - _pairs(exact, n)).abs().max())
    if (kde := references.get("kde")) is not None and (n := min(len(mi), len(kde))) >= 5:
        out["spearman_to_kde"] = float(spearmanr(_pairs(mi, n), _pairs(kde, n)).statistic)
    return out


def _pairs(matrix: Tensor, n: int) -> Tensor:
    """The pairs i < j among the first n variables."""
    first, second = torch.triu_indices(n, n, 1)
    return matrix[first, second].double()
