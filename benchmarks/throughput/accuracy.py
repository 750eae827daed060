"""How right the values of a variant are: no time is reported without it."""

import torch
from torch import Tensor

from benchmarks.throughput.cases import Case
from benchmarks.throughput.samples import true_mi
from mikernels import mutual_information

COLUMNS = 32
"""Variables whose pairs are compared."""

REFERENCE_FLOATS = 2**27
"""Of one temporary of the float64 references, which make a few: 1 GiB each."""


def references(x: Tensor, case: Case, estimators: set[str]) -> dict[str, Tensor]:
    """The float64 reference of each estimator among the first columns of `x [M, N]`: `[n, n]` nats.

    n is what the reference can hold: it makes `[n, M, M]` of float64, or `[n, M, G]` for `grid`. An estimator that
    could not hold two variables is left out.
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


def accuracy(mi: Tensor, case: Case, references: dict[str, Tensor]) -> dict[str, float]:
    """Errors of `mi [n, n]`, made by a variant that computes `case`, over the pairs of its first columns.

    Returns:
        `rms_to_truth_nats` and `spearman_to_truth` against the closed form; `max_error_nats` against the
        float64 reference of the same estimator, and `spearman_to_kde`, the rank agreement with that of `kde`,
        where these are given. No ranks of fewer than 10 pairs.
    """
    mi = mi.cpu().double()
    n = min(len(mi), COLUMNS)
    truth, values = _pairs(true_mi(case, n), n), _pairs(mi, n)
    out = {"pairs_compared": len(values), "rms_to_truth_nats": float((values - truth).square().mean().sqrt())}
    if len(values) >= 10:
        out["spearman_to_truth"] = spearman(values, truth)
    if (exact := references.get(case.estimator)) is not None:
        n = min(len(mi), len(exact))
        out["max_error_nats"] = float((_pairs(mi, n) - _pairs(exact, n)).abs().max())
    if (kde := references.get("kde")) is not None and (n := min(len(mi), len(kde))) >= 5:
        out["spearman_to_kde"] = spearman(_pairs(mi, n), _pairs(kde, n))
    return out


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of the ranks of two vectors without ties."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def _pairs(matrix: Tensor, n: int) -> Tensor:
    """The pairs i < j of the first n variables."""
    first, second = torch.triu_indices(n, n, 1)
    return matrix[first, second].double()
