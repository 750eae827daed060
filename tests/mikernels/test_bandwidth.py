"""Rules for the bandwidth: their values, what leave-one-out chooses, and where it cannot."""

import pytest
import torch

from mikernels import GridStream, mutual_information, null_distribution, pairs_above, top_pairs
from mikernels.options import GRID_BANDWIDTH_FLOOR, make_problem, node_spacing, silverman
from mikernels.tuning.bandwidth import RUNGS, _log_densities, leave_one_out_bandwidth

from samples import correlated, gaussian


def ridge(n_samples, width):
    """Variables that share all but `width` standard deviations."""
    return gaussian(n_samples, 1) + width * gaussian(n_samples, 6, seed=1)


def choice(x, y=None, seed=0):
    return leave_one_out_bandwidth(x, y, "rank", seed)


@pytest.mark.parametrize("n_samples", [8, 1000, 100_000])
def test_scott_is_silverman_in_two_dimensions(n_samples):
    for rule in ("silverman", "scott"):
        assert make_problem("kde", 16, rule, n_samples).bandwidth == n_samples ** (-1 / 6)


def test_densities_against_the_definition():
    x, y = gaussian(50, 2).unbind(1)
    query = torch.tensor([3, 17])
    expected = []
    for h in (0.1, 0.5):
        kernel = torch.exp(-((x[query, None] - x) ** 2 + (y[query, None] - y) ** 2).double() / (2 * h**2))
        kernel[torch.arange(2), query] = 0.0
        expected.append((kernel.sum(1) / h**2).log().sum())
    torch.testing.assert_close(
        _log_densities(x, y, query, [0.1, 0.5]), torch.stack(expected), rtol=1e-5, atol=1e-5
    )


def test_independent_variables_get_about_the_rule_of_thumb():
    assert choice(gaussian(1000, 8)) / silverman(1000) == pytest.approx(1.0, rel=0.5)


def test_sharper_dependence_gets_narrower_kernels():
    chosen = [choice(ridge(1000, width)) for width in (1.0, 0.3, 0.1)]
    assert chosen[0] > chosen[1] > chosen[2]


def test_two_inputs():
    x = ridge(500, 0.1)
    across = choice(x[:, :3], x[:, 3:])
    assert across / choice(x) == pytest.approx(1, rel=0.5)  # a rung up or down: other pairs are drawn
    assert choice(gaussian(500, 3, seed=2), x) > across


@pytest.mark.parametrize("estimator", ["kde", "grid"])
def test_loo_is_the_number_that_it_chooses(estimator):
    x = ridge(300, 0.1)
    options = {"estimator": estimator, "nodes": 64}
    expected = mutual_information(x, bandwidth=choice(x), **options)
    assert torch.equal(mutual_information(x, bandwidth="loo", **options), expected)
    found = top_pairs(x, 2, bandwidth="loo", **options)
    assert torch.equal(found.mi, top_pairs(x, 2, bandwidth=choice(x), **options).mi)
    assert len(pairs_above(x, 0.5, bandwidth="loo", **options).mi) == 15


def test_grid_keeps_its_floor():
    x = ridge(1000, 0.05)
    floor = GRID_BANDWIDTH_FLOOR * node_spacing(16)
    assert choice(x) < floor
    assert torch.equal(mutual_information(x, bandwidth="loo"), mutual_information(x, bandwidth=floor))


def test_loo_is_nearer_the_truth_for_strong_dependence():
    x = ridge(1000, 0.1)
    correlation = 1 / 1.01
    truth = -0.5 * torch.log1p(torch.tensor(-(correlation**2)))
    error = {
        rule: (mutual_information(x[:, :2], estimator="kde", bandwidth=rule)[0, 1] - truth).abs()
        for rule in ("silverman", "loo")
    }
    assert error["loo"] < 0.5 * error["silverman"]


def test_repeatable_by_seed():
    x = correlated(300, 10)
    assert choice(x, seed=5) == choice(x, seed=5)
    assert all(choice(x, seed=seed) / silverman(300) <= max(RUNGS) + 1e-9 for seed in range(3))


def test_where_there_is_no_choice():
    x = gaussian(50, 3)
    for estimator in ("renyi2", "adaptive"):
        with pytest.raises(ValueError, match=r"bandwidth: .* got 'loo'"):
            mutual_information(x, estimator=estimator, bandwidth="loo")
    with pytest.raises(ValueError, match="expected None, 'silverman', 'scott' or a number"):
        GridStream(x, bandwidth="loo")
    with pytest.raises(
        ValueError, match="expected a number or a rule that sees no samples for a null, got 'loo'"
    ):
        null_distribution(100, estimator="kde", bandwidth="loo")
    with pytest.raises(ValueError, match="expected variables that vary for 'loo', got a constant one"):
        mutual_information(torch.ones(50, 3), bandwidth="loo")
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="x: expected finite values, got 1 NaN"):
        mutual_information(x, bandwidth="loo")
