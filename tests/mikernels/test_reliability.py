"""Split halves: against simulation, and the prophecy formula against its own arithmetic."""

import pytest
import torch

from mikernels import Reliability, samples_for, split_half_reliability
from mikernels.statistics.reliability import _spearman

from samples import correlated, gaussian


def test_full_is_what_two_draws_of_that_size_show():
    """The step-up from halves of 2,000 to 2,000 is what halves of 4,000 show, within what pairs allow."""
    x = correlated(4000, 40)
    predicted = split_half_reliability(x[:2000]).full
    seen = split_half_reliability(x).halves
    assert abs(predicted - seen) < 0.05


def test_noise_has_none():
    result = split_half_reliability(gaussian(500, 40))
    assert abs(result.halves) < 4 / 780**0.5
    assert result.n_samples == 500


def test_strong_structure_has_much():
    assert split_half_reliability(correlated(4000, 20)).full > 0.9


def test_odd_counts_options_and_seed():
    x = correlated(101, 6)
    options = {"estimator": "kde", "seed": 3}
    assert split_half_reliability(x, **options) == split_half_reliability(x, **options)
    assert split_half_reliability(x, **options).n_samples == 100
    assert split_half_reliability(x, **options) != split_half_reliability(x, estimator="kde", seed=4)


def test_rule_for_samples():
    assert samples_for(Reliability(4000, 0.5, 2 / 3), target=0.9) in (18_000, 18_001)  # 9 times 2,000
    assert samples_for(Reliability(4000, 0.5, 2 / 3), target=2 / 3) in (4000, 4001)
    assert samples_for(Reliability(4000, 1.0, 1.0)) == 2000


def test_spearman_shares_ranks_of_equal_values():
    a = torch.tensor([0.0, 0.0, 1.0, 2.0])
    b = torch.tensor([3.0, 4.0, 5.0, 5.0])
    # ranks 1.5 1.5 3 4 and 1 2 3.5 3.5
    expected = torch.corrcoef(torch.tensor([[1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5]]))[0, 1]
    assert _spearman(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: expected at least 16 samples \(rows\), got 15"):
        split_half_reliability(gaussian(15, 4))
    with pytest.raises(ValueError, match="x: expected at least 3 variables"):
        split_half_reliability(gaussian(50, 2))
    with pytest.raises(ValueError, match="got the same value for all"):
        split_half_reliability(torch.ones(50, 4))
    with pytest.raises(ValueError, match="target: expected a correlation between 0 and 1, got 1"):
        samples_for(Reliability(100, 0.5, 2 / 3), target=1)
    with pytest.raises(ValueError, match=r"expected halves that correlate positively, got -0\.1"):
        samples_for(Reliability(100, -0.1, -0.2))
