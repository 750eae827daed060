"""Split halves: against simulation, and the prophecy formula against its own arithmetic."""

import pytest
import torch

from mikernels import Reliability, samples_for, split_half_reliability
from mikernels.statistics.reliability import _extrapolated, _spearman

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


def test_two_sizes_give_the_line_through_them():
    """1 / r = 1.25 + b / M with r = 0.5 at M / 2 (b = 3 M / 8): 0.364 at M / 4, 0.615 at M, and 0.8 in the limit."""
    quarters = 1 / (1.25 + 4 * 0.375)
    reliability = _extrapolated(4000, 0.5, quarters)
    assert reliability.full == pytest.approx(1 / (1.25 + 0.375))
    assert reliability.limit == pytest.approx(0.8)
    assert samples_for(reliability, 1 / (1.25 + 0.375)) in (4000, 4001)
    with pytest.raises(ValueError, match=r"target: expected less than 0\.8, to which the agreement tends"):
        samples_for(reliability, 0.81)
    # The noise of an average: a is 1, as from halves alone.
    for of_quarters in (None, 1 / 3, 0.34 / 1.1):
        assert _extrapolated(4000, 0.5, of_quarters).full == pytest.approx(2 / 3)
    # More samples did not help.
    assert _extrapolated(4000, 0.5, 0.6).full == pytest.approx(0.5)


def test_groups_stay_together():
    """60 documents, each with a factor of its own for every pair: rows of one document agree, documents do not."""
    rows, documents = 50, 60
    labels = torch.arange(documents).repeat_interleave(rows)
    factor = gaussian(documents, 24, 1)[labels]
    x = gaussian(rows * documents, 24, 2) + 3 * factor
    together, apart = split_half_reliability(x, groups=labels), split_half_reliability(x)
    assert apart.halves > together.halves + 0.2
    assert abs(together.halves) < 0.25
    assert together.n_samples == rows * documents
    assert split_half_reliability(x, groups=labels.tolist()) == together
    assert split_half_reliability(x[:100], groups=labels[:100].numpy()).quarters is None  # two documents


@pytest.mark.parametrize("sizes", [[10] * 160, [600, 600] + [10] * 40], ids=["equal", "unequal"])
def test_groups_of_any_size_are_extrapolated_by_the_sizes_of_their_parts(sizes, monkeypatch):
    """Agreement by the law itself, `1 / r = 1.1 + 200 / n`, in place of that of the estimates."""

    def by_law(_a, _b, n_samples):
        return Reliability(n_samples, 1 / (1.1 + 400 / n_samples), 0.0)

    monkeypatch.setattr("mikernels.statistics.reliability.reliability_of_halves", by_law)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for seed in range(3):
        found = split_half_reliability(gaussian(1600, 3), groups=labels, seed=seed)
        assert found.limit == pytest.approx(1 / 1.1)
        assert found.full == pytest.approx(1 / (1.1 + 200 / found.n_samples))
        assert found.quarters == pytest.approx(1 / (1.1 + 800 / found.n_samples))


def test_spearman_shares_ranks_of_equal_values():
    a = torch.tensor([0.0, 0.0, 1.0, 2.0])
    b = torch.tensor([3.0, 4.0, 5.0, 5.0])
    # ranks 1.5 1.5 3 4 and 1 2 3.5 3.5
    expected = torch.corrcoef(torch.tensor([[1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5]]))[0, 1]
    assert _spearman(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_values_are_looked_at_unless_that_is_not_wanted():
    x = gaussian(64, 4)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="x: expected finite values, got 1 NaN"):
        split_half_reliability(x)
    assert split_half_reliability(x, check_finite=False).n_samples == 64


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: expected at least 16 samples \(rows\), got 15"):
        split_half_reliability(gaussian(15, 4))
    with pytest.raises(ValueError, match="x: expected at least 3 variables"):
        split_half_reliability(gaussian(50, 2))
    with pytest.raises(ValueError, match="groups: expected one label for each of 50 samples, got shape"):
        split_half_reliability(gaussian(50, 4), groups=[0, 1])
    with pytest.raises(ValueError, match="groups: expected a label for each sample, got NaN"):
        split_half_reliability(gaussian(50, 4), groups=[0.0, float("nan"), 2.0, 3.0, 4.0] * 10)
    with pytest.raises(
        ValueError, match=r"groups: expected groups that fill two halves .* got halves of 50 and 0"
    ):
        split_half_reliability(gaussian(50, 4), groups=[7] * 50)
    with pytest.raises(ValueError, match="got the same value for all"):
        split_half_reliability(torch.ones(50, 4))
    with pytest.raises(ValueError, match="target: expected a correlation between 0 and 1, got 1"):
        samples_for(Reliability(100, 0.5, 2 / 3), target=1)
    with pytest.raises(ValueError, match=r"expected halves that correlate positively, got -0\.1"):
        samples_for(Reliability(100, -0.1, -0.2))
