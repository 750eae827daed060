"""The null distribution and what follows from it."""

import math

import pytest
import torch

from mikernels import mutual_information
from mikernels.statistics.null import Null, null_distribution

from samples import gaussian, off_diagonal

NULL = Null(100, torch.arange(1, 1001, dtype=torch.float32) / 1000)


def test_quantile_leaves_the_share_above():
    for q in (0.5, 0.9, 0.99):
        assert (NULL.values > NULL.quantile(q)).double().mean() <= 1 - q + 1e-9
        assert (NULL.values >= NULL.quantile(q)).double().mean() >= 1 - q - 1e-9


def test_too_few_draws_for_a_quantile():
    with pytest.raises(ValueError, match=r"expected at least 10000 draws for the quantile 0\.999, got 1000"):
        NULL.quantile(0.999)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_quantiles_that_are_none(q):
    with pytest.raises(ValueError, match="q: expected a probability between 0 and 1"):
        NULL.quantile(q)


def test_p_values():
    mi = torch.tensor([[2.0, 1.0], [0.5, -1.0]])
    expected = torch.tensor([[1.0, 2.0], [502.0, 1001.0]]).double() / 1001
    torch.testing.assert_close(NULL.p_value(mi), expected)


def test_false_discovery_rate_by_hand():
    """p-values 1/1001, 1/1001, 501/1001 of three pairs: two pass at 5 %, all at 60 %."""
    mi = torch.tensor([[9.0, 3.0, 0.501], [3.0, 9.0, 2.0], [0.501, 2.0, 9.0]])
    assert NULL.fdr_threshold(mi, 0.05) == 2.0
    assert NULL.fdr_threshold(mi, 0.6) == pytest.approx(0.501)
    assert NULL.fdr_threshold(torch.zeros(3, 3), 0.05) == math.inf


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 1)])
def test_false_discovery_rate_needs_a_square(shape):
    with pytest.raises(ValueError, match="mi: expected a square matrix"):
        NULL.fdr_threshold(torch.zeros(shape), 0.05)


def test_false_discovery_rate_needs_a_share():
    with pytest.raises(ValueError, match="rate: expected a share between 0 and 1, got 1"):
        NULL.fdr_threshold(torch.zeros(3, 3), 1)


@pytest.mark.parametrize("estimator", ["adaptive", "grid"])
def test_fresh_independent_variables_exceed_it_as_often_as_they_should(estimator):
    """2016 fresh pairs at 5 %: 101 expected, 30 is three standard deviations."""
    null = null_distribution(500, estimator=estimator, draws=2000)
    mi = mutual_information(gaussian(500, 64, 9) ** 3, estimator=estimator)
    above = (off_diagonal(mi) > null.quantile(0.95)).sum() / 2
    assert abs(above - 101) < 31


def test_false_discoveries_are_few():
    x = gaussian(500, 40)
    x[:, :10] += x[:, 10:11]
    null = null_distribution(500, draws=2000)
    mi = mutual_information(x, estimator="adaptive")
    found = (mi > null.fdr_threshold(mi, 0.1)).triu(1)
    dependent = torch.zeros_like(found)
    dependent[:11, :11] = True
    assert found[:11, :11].sum() > 40
    assert (found & ~dependent).sum() <= 0.3 * found.sum()


def test_cached_sorted_and_seeded():
    null = null_distribution(50, estimator="grid", draws=100)
    assert null_distribution(50, estimator="grid", draws=100) is null
    assert len(null.values) >= 100
    assert (null.values.diff() >= 0).all()
    other = null_distribution(50, estimator="grid", draws=100, seed=1)
    assert not torch.equal(null.values, other.values)


def test_impossible_requests():
    with pytest.raises(ValueError, match="n_samples: expected at least 8, got 7"):
        null_distribution(7)
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        null_distribution(100, draws=0)
    with pytest.raises(ValueError, match="estimator: expected one of"):
        null_distribution(100, estimator="ksg")
    with pytest.raises(ValueError, match="transform: expected 'rank' for a null, got 'standardize'"):
        null_distribution(100, transform="standardize")
