"""The null distribution and what follows from it."""

import math

import pytest
import torch

from mikernels import mutual_information, top_pairs
from mikernels.statistics import surrogates
from mikernels.statistics.null import Null
from mikernels.statistics.surrogates import _drawn, _simulate, null_distribution, permuted_null, shifted_null
from mikernels.transforms import transform_samples

from samples import gaussian, off_diagonal

NULL = Null({"n_samples": 100}, torch.arange(1, 1001, dtype=torch.float32) / 1000)


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


@pytest.mark.parametrize("shape", [(4,), (0, 3), (1, 1)])
def test_false_discovery_rate_needs_a_matrix_of_pairs(shape):
    with pytest.raises(ValueError, match="mi: expected a matrix of the pairs"):
        NULL.fdr_threshold(torch.zeros(shape), 0.05)


def test_false_discoveries_of_lags_are_sought_in_the_whole_matrix():
    """Column i + 1 follows column i by one step: all 5 such pairs lie above the diagonal or all below it."""
    noise = gaussian(1001, 6)
    x = noise.clone()
    x[1:, 1:] += 2 * noise[:-1, :-1]
    null = null_distribution(1000, draws=20_000)
    for before, after in ((x[:-1], x[1:]), (x[1:], x[:-1]), (x[1:, 1:], x[:-1, :-1]), (x[1:, 1:], x[:-1])):
        mi = mutual_information(before, after)
        assert (mi >= null.fdr_threshold(mi, 0.05)).sum() == 5


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
    null = null_distribution(500, draws=2000, estimator="adaptive")
    mi = mutual_information(x, estimator="adaptive")
    found = (mi > null.fdr_threshold(mi, 0.1)).triu(1)
    dependent = torch.zeros_like(found)
    dependent[:11, :11] = True
    assert found[:11, :11].sum() > 40
    assert (found & ~dependent).sum() <= 0.3 * found.sum()


def test_cached_sorted_and_seeded():
    null = null_distribution(50, estimator="grid", draws=100)
    hits = _simulate.cache_info().hits
    assert torch.equal(null_distribution(50, estimator="grid", draws=100).values, null.values)
    assert _simulate.cache_info().hits == hits + 1
    assert len(null.values) >= 100
    assert (null.values.diff() >= 0).all()
    other = null_distribution(50, estimator="grid", draws=100, seed=1)
    assert not torch.equal(null.values, other.values)


def labels(n_samples, levels, seed=0):
    """Independent integer columns with as many levels as named: `[M, N]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(k, (n_samples,), generator=generator) for k in levels], dim=1).float()


@pytest.mark.parametrize("make", [permuted_null, shifted_null])
def test_a_label_among_many_columns_depends_on_none_of_them(make):
    """Chance adds more to its pairs. Hundreds of them exceeded nulls that did not happen to draw it."""
    x = torch.cat([gaussian(200, 800, 1), labels(200, [8], 1)], dim=1)
    null = make(x, draws=20_000, seed=1)  # of 201 columns, or of 31 at a time
    assert not math.isfinite(null.fdr_threshold(mutual_information(x), 0.05))


def test_columns_with_the_most_atoms_are_drawn_always_and_others_at_random():
    atoms = torch.tensor([0] * 100 + [2] * 90 + [9, 12])
    counts = torch.zeros(192)
    for seed in range(200):
        drawn = _drawn(20, atoms, torch.Generator().manual_seed(seed))
        assert len(set(drawn.tolist())) == 20
        counts[drawn] += 1
    assert counts[191] == 200  # 5 % of 20 columns are one
    assert 0 < counts[:191].min() < counts[:191].max() < 60  # of 20 expected


def test_all_columns_of_a_narrow_table_are_drawn_equally_often():
    drawn = _drawn(12, torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert drawn.bincount().tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("make", [permuted_null, shifted_null])
def test_atoms_are_counted_only_where_columns_are_left_out(make, monkeypatch):
    counted = []
    monkeypatch.setattr(
        surrogates, "transform_samples", lambda *a, **k: counted.append(a) or transform_samples(*a, **k)
    )
    make(gaussian(50, 6), draws=2000)
    assert not counted
    make(gaussian(50, 80), draws=2000)
    assert len(counted) == 1


def test_a_change_in_place_stays_with_the_caller():
    median = null_distribution(50, draws=100).quantile(0.5)
    null = null_distribution(50, draws=100)
    null.values.mul_(1 / math.log(2))  # bits
    null.made_with["n_samples"] = 1
    again = null_distribution(50, draws=100)
    assert again.quantile(0.5) == median
    assert again.made_with["n_samples"] == 50


def test_impossible_requests():
    with pytest.raises(ValueError, match="n_samples: expected at least 8, got 7"):
        null_distribution(7)
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        null_distribution(100, draws=0)
    with pytest.raises(ValueError, match="estimator: expected one of"):
        null_distribution(100, estimator="ksg")
    with pytest.raises(ValueError, match="transform: expected 'rank' for a null, got 'standardize'"):
        null_distribution(100, transform="standardize")


def test_estimates_of_another_estimator_or_size_are_refused(tmp_path):
    x = gaussian(64, 4)
    null = null_distribution(64, draws=30)
    assert null.made_with == {
        "n_samples": 64,
        "estimator": "grid",
        "transform": "rank",
        "bandwidth": pytest.approx(0.5),
        "calibrate": False,
        "nodes": 16,
    }
    for mi in (mutual_information(x), mutual_information(x, y=x[:, :1]), top_pairs(x, 3).mi):
        assert null.p_value(mi).shape == mi.shape
    for options in ({"estimator": "adaptive"}, {"nodes": 8}, {"bandwidth": 0.3}, {"calibrate": True}):
        for mi in (mutual_information(x, **options), top_pairs(x, 3, **options).mi):
            with pytest.raises(ValueError, match=r"mi: expected estimates made with n_samples=64, .* got"):
                null.p_value(mi)
    with pytest.raises(ValueError, match="got n_samples=40"):
        null.fdr_threshold(mutual_information(x[:40]), 0.05)
    # The same estimates, computed in another way.
    null.p_value(mutual_information(x, impl="reference", seed=3, memory_budget=2**20))
    torch.save(mutual_information(x, nodes=8), tmp_path / "mi.pt")
    with pytest.raises(ValueError, match="nodes=8"):
        null.p_value(torch.load(tmp_path / "mi.pt", weights_only=True))


def test_estimates_of_columns_with_atoms_are_refused():
    """Two thirds of them would exceed the quantile of 0.95. `shifted_null` has the tables of the data."""
    x = gaussian(500, 30).relu()
    null, shifted = null_distribution(500, draws=10_000), shifted_null(x, draws=10_000)
    mi = mutual_information(x)
    assert (off_diagonal(mi) > null.quantile(0.95)).float().mean() > 0.3
    for estimates in (mi, mutual_information(gaussian(500, 2), x), top_pairs(x, 3).mi):
        with pytest.raises(
            ValueError, match=r"mi: expected estimates of columns without a value .* shifted_null"
        ):
            null.p_value(estimates)
        assert shifted.p_value(estimates).shape == estimates.shape
    assert abs((off_diagonal(shifted.p_value(mi)) < 0.05).float().mean() - 0.05) < 0.03
    assert null.p_value(mutual_information(gaussian(500, 2))).shape == (2, 2)


def test_a_compiled_matrix_has_p_values():
    compiled = torch.compile(lambda x: mutual_information(x).clone(), backend="eager", fullgraph=True)
    x = gaussian(64, 4)
    null = null_distribution(64, draws=30)
    assert torch.equal(null.p_value(compiled(x)), null.p_value(mutual_information(x)))


@pytest.mark.parametrize("kind", ["exponential", "student"])
def test_tail_of_known_distributions(kind):
    """-log(U) and the t distribution with 4 degrees of freedom, whose tails are known: shapes 0 and 1/4."""
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(200_000, 5, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    normal = torch.randn(200_000, 5, generator=generator, dtype=torch.float64)
    if kind == "exponential":
        values = -u[:, 0].log()
        expected = {p: -math.log(p) for p in (1e-3, 1e-5)}
    else:
        values = normal[:, 0] / normal[:, 1:].square().mean(1).sqrt()
        expected = {1e-3: 7.1732, 1e-4: 13.0337}  # of one tail
    null = Null({}, values.float().sort().values)
    for probability, value in expected.items():
        assert null.quantile(1 - probability) == pytest.approx(value, rel=0.1)
        assert float(null.p_value(value)) == pytest.approx(probability, rel=0.5)
    assert null.tail.shape == pytest.approx({"exponential": 0.0, "student": 0.25}[kind], abs=0.12)
    # Continuous where the tail starts.
    start = null.tail.start
    assert float(null.p_value(start)) == pytest.approx(float(null.p_value(start + 1e-6)), rel=1e-3)
    probabilities = null.p_value(torch.linspace(0, 30, 500))
    assert (probabilities.diff() <= 0).all()
    assert probabilities[-1] > 0
    assert torch.isfinite(null.p_value(torch.tensor([1e3, 1e30, math.inf])).log()).all()


def test_no_tail_is_fitted_to_few_draws_or_few_values():
    assert NULL.tail is None
    assert Null({}, torch.ones(20_000)).tail is None
    assert Null({}, torch.arange(50).repeat(400).sort().values.float()).tail is None


def test_a_continuous_null_keeps_its_tail_however_narrow_or_coarse_it_is():
    """Estimates of very many samples lie within a few steps of float32 of each other."""
    u = torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exponential = -u.clamp(min=1e-12).log()
    coarse = (exponential / 0.2).round() * 0.2
    for values, unit in ((exponential, 1.0), (1e-4 * exponential, 1e-4), (coarse, 1.0)):
        null = Null({}, values.float().sort().values)
        assert float(null.p_value(13 * unit)) == pytest.approx(math.exp(-13), rel=0.7)
    outlier = torch.cat([exponential, torch.tensor([40.0]).double()])
    assert Null({}, outlier.float().sort().values).tail is not None
    assert Null({}, (exponential.float() / 3).round().sort().values).tail is None


def test_false_discoveries_of_variables_with_themselves_are_sought_once():
    """The matrix of x and y = x is symmetric but for rounding, and its diagonal is no pair."""
    x = gaussian(1000, 20)
    x[:, 1] += 0.4 * x[:, 0]
    for estimator in ("grid", "adaptive"):
        null = null_distribution(1000, draws=20_000, estimator=estimator)
        once = null.fdr_threshold(mutual_information(x, estimator=estimator), 0.05)
        again = null.fdr_threshold(mutual_information(x, x, estimator=estimator), 0.05)
        assert again == pytest.approx(once, rel=0.02)


def test_false_discoveries_of_two_sets_include_the_pairs_on_the_diagonal():
    """x is y with noise: the matrix is nearly symmetric by chance for many seeds, with the largest values on its
    diagonal."""
    control = pytest.importorskip("scipy.stats").false_discovery_control
    null = null_distribution(200, draws=20_000)
    for seed in range(100):
        y = gaussian(200, 2, 2 * seed)
        mi = mutual_information(y + 0.35 * gaussian(200, 2, 2 * seed + 1), y)
        passed = control(null.p_value(mi).flatten().numpy()) <= 0.05
        assert (mi >= null.fdr_threshold(mi, 0.05)).flatten().tolist() == passed.tolist()


def test_what_the_draws_tell_is_not_below_a_fit_that_misses_a_part_of_them():
    """One draw in 500 is of another kind, and larger: a fit of the upper percent halves the end of most of those."""
    u = torch.rand(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.where(u[:, 0] < 0.002, 12 + u[:, 1], -u[:, 1].log())
    null = Null({}, values.float().sort().values)
    for level, truth in ((12.0, 0.002), (12.5, 0.001)):
        assert float(null.p_value(level)) == pytest.approx(truth, rel=0.2)
        assert float((values > null.quantile(1 - truth)).double().mean()) <= truth
    quantiles = [null.quantile(1 - 10**-k) for k in torch.linspace(1.5, 8, 60).tolist()]
    assert quantiles == sorted(quantiles)
    assert (null.p_value(torch.linspace(0, 20, 999)).diff() <= 0).all()


@pytest.mark.parametrize("estimator", ["grid", "adaptive", "kde"])
@pytest.mark.parametrize("n_samples", [24, 200])
def test_p_values_of_binary_columns_are_those_of_fisher(n_samples, estimator):
    """Columns cut at their medians: the number of samples above both has a hypergeometric distribution."""
    half = n_samples // 2
    x = (gaussian(n_samples, 100).argsort(0).argsort(0) >= half).float()
    mi, null = mutual_information(x, estimator=estimator), permuted_null(x, draws=50_000, estimator=estimator)
    row, col = torch.triu_indices(100, 100, 1)
    both, p = (x.t() @ x)[row, col].int(), null.p_value(mi)[row, col]
    ways = [math.comb(half, k) ** 2 for k in range(half + 1)]
    for k in both.unique().tolist():
        exact = sum(w for j, w in enumerate(ways) if abs(2 * j - half) >= abs(2 * k - half)) / sum(ways)
        if exact > 2e-3:  # 100 draws
            assert p[both == k].numpy() == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("estimator", ["grid", "kde", "adaptive"])
def test_rates_of_fresh_pairs_down_to_one_in_a_thousand(estimator):
    """126,000 fresh pairs: one standard error is 9 % at 0.001 and 4 % at 0.005, that of the null 6 % and 3 %."""
    null = null_distribution(32, estimator=estimator, draws=150_000)
    mi = mutual_information(gaussian(32, 503, 5), estimator=estimator)
    fresh = mi[tuple(torch.triu_indices(503, 503, offset=1))]
    for nominal, tolerance in ((0.05, 0.04), (0.005, 0.15), (0.001, 0.33)):
        rate = float((fresh > null.quantile(1 - nominal)).double().mean())
        assert rate == pytest.approx(nominal, rel=tolerance)


def test_a_single_dependent_pair_among_200_variables_is_found():
    """19,900 pairs: at a rate of 5 % the first may have a p-value of 2.5e-6 at most."""
    x = gaussian(200, 200, 3)
    x[:, 1] = x[:, 0] + 0.3 * x[:, 1]
    mi = mutual_information(x)
    threshold = null_distribution(200, draws=20_000).fdr_threshold(mi, 0.05)
    assert math.isfinite(threshold)
    assert (mi.triu(1) >= threshold).nonzero().tolist() == [[0, 1]]


def autoregressive(n_samples, n_variables, coefficient, seed=0):
    noise = gaussian(n_samples, n_variables, seed)
    rows = [noise[0]]
    for row in noise[1:]:
        rows.append(coefficient * rows[-1] + math.sqrt(1 - coefficient**2) * row)
    return torch.stack(rows)


def test_series_need_a_shifted_null():
    x = autoregressive(500, 40, 0.9)
    options = {"estimator": "grid"}
    mi = off_diagonal(mutual_information(x, **options))
    independent = null_distribution(500, draws=4000, **options)
    shifted = shifted_null(x, draws=4000, **options)
    assert (mi > independent.quantile(0.95)).double().mean() > 0.5
    assert 0.01 < (mi > shifted.quantile(0.95)).double().mean() < 0.1
    assert shifted.made_with == independent.made_with


def test_shifted_null_of_independent_samples_is_the_null():
    x = gaussian(200, 30, 2)
    shifted, simulated = shifted_null(x, draws=4000), null_distribution(200, draws=4000)
    assert shifted.quantile(0.95) == pytest.approx(simulated.quantile(0.95), rel=0.05)
    assert len(shifted.values) == pytest.approx(4000, rel=0.05)
    two = shifted_null(x[:, :2], x[:, 2:3], draws=100)
    assert len(two.values) == 100
    assert torch.equal(shifted_null(x, draws=50).values, shifted_null(x, draws=50).values)


def test_every_shift_counts_once():
    """Of two columns of 100 samples there are 40 shifts by a tenth to a half of a turn, in either direction."""
    x = autoregressive(100, 2, 0.5)
    every = [mutual_information(x[:, :1], x[:, 1:].roll(s, 0)) for s in range(10, 91) if s != 50]
    for draws in (10_000, 400_000):
        values = shifted_null(x, draws=draws).values
        torch.testing.assert_close(values, torch.cat(every).flatten().sort().values)
    every = [mutual_information(x[:, :1], x[:, 1:].roll(s, 0)) for s in range(10, 90)]
    values = shifted_null(x[:, :1], x[:, 1:]).values
    torch.testing.assert_close(values, torch.cat(every).flatten().sort().values)


def test_impossible_requests_of_a_shifted_null():
    with pytest.raises(ValueError, match="x: expected at least 2 variables"):
        shifted_null(gaussian(20, 1))
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        shifted_null(gaussian(20, 2), draws=0)
    with pytest.raises(ValueError, match=r"bandwidth: expected a number or a rule .* got 'loo'"):
        shifted_null(gaussian(20, 2), bandwidth="loo")


def test_permuted_columns_have_the_null_of_independent_samples():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).cumsum(1)  # dependent
    simulated = null_distribution(200, draws=20_000)
    for null in (permuted_null(x, draws=20_000), permuted_null(x, x[:, :2], draws=20_000)):
        assert null.made_with == simulated.made_with
        assert len(null.values) >= 20_000
        for q in (0.5, 0.9, 0.99):
            assert null.quantile(q) == pytest.approx(simulated.quantile(q), rel=0.05)


def test_permuted_columns_keep_their_atoms():
    generator = torch.Generator().manual_seed(0)
    x, fresh = torch.randn(2, 400, 60, generator=generator).clamp(min=0.2)
    mi = mutual_information(fresh)
    p = permuted_null(x, draws=20_000).p_value(mi[tuple(torch.triu_indices(60, 60, 1))])
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.02)
    with pytest.raises(ValueError, match="use permuted_null"):
        null_distribution(400, draws=100).p_value(mi)
