"""The known mutual information of the accuracy benchmark, and the benchmark itself on tiny samples."""

import math

import numpy as np
import pytest
import torch

from benchmarks.accuracy import __main__ as run
from benchmarks.accuracy import estimators, truths
from benchmarks.accuracy.cases import CASES
from benchmarks.publish import accuracy as page

NEW_FAMILIES = {"tied", "discrete", "rapid"}


def test_both_halves_have_every_family():
    families = {case.family for case in CASES}
    for half in ("tuning", "reported"):
        assert {case.family for case in CASES if case.half == half} | NEW_FAMILIES == families
    assert len(CASES) >= 26
    assert len({case.name for case in CASES}) == len(CASES)


def places(values, bins):
    """A cell for each value that many samples share, and `bins` cells for the ranks of the others."""
    distinct, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    if len(distinct) < 64:
        return inverse
    often = counts >= len(values) // 100
    cells = torch.where(often, often.cumsum(0) + bins, 0)[inverse]
    rest = cells == 0
    cells[rest] = values[rest].argsort().argsort() * bins // max(1, int(rest.sum()))
    return cells.unique(return_inverse=True)[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_draws_are_finite_and_follow_the_truth(case):
    """A sample and a plain histogram of its values and ranks: at most the truth, and not far below."""
    n, bins = (20_000, 64) if case.family == "rapid" else (4000, 24)
    x, y = case.draw(torch.Generator().manual_seed(0), n)
    assert x.shape == y.shape == (n,)
    assert x.isfinite().all()
    assert y.isfinite().all()
    a, b = places(x, bins), places(y, bins)
    counts = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    share = counts.index_put_((a, b), torch.ones(n, dtype=torch.float64), accumulate=True) / n
    product = share.sum(1, keepdim=True) * share.sum(0)
    plug_in = float(torch.special.xlogy(share, share / product).sum())
    bias = (len(counts) - 1) * (counts.shape[1] - 1) / (2 * n)
    assert plug_in - bias < case.mi + 0.05
    if case.family in ("tied", "discrete"):
        assert plug_in - bias > case.mi - 0.08
    assert plug_in > 0.6 * min(case.mi, math.log(bins))


ALL = (-math.inf, math.inf, False)


def test_pieces_of_a_gaussian_pair():
    """Cut in pieces it is the same; its signs agree with probability 1/2 + asin(rho) / pi; small steps keep all."""
    cut = ((-math.inf, -0.3, False), (-0.3, 1.1, False), (1.1, math.inf, False))
    assert truths.in_pieces(0.8, cut, (ALL,)) == pytest.approx(truths.gaussian(0.8), abs=1e-9)
    signs = ((-math.inf, 0.0, True), (0.0, math.inf, True))
    agree = 0.5 + math.asin(0.7) / math.pi
    binary = math.log(2) - truths.entropy([agree, 1 - agree])
    assert truths.in_pieces(0.7, signs, signs) == pytest.approx(binary, abs=1e-9)
    # Each value of one, and the sign of the other given it: by the trapezoidal rule.
    y = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    p = torch.special.ndtr(-0.7 * y / math.sqrt(1 - 0.49))
    terms = torch.special.xlogy(p, 2 * p) + torch.special.xlogy(1 - p, 2 * (1 - p))
    weight = torch.exp(-0.5 * y.square()) / math.sqrt(2 * math.pi) * (y[1] - y[0])
    assert truths.in_pieces(0.7, signs, (ALL,)) == pytest.approx(float(weight @ terms), abs=1e-9)
    steps = [(0.2 * k, 0.2 * (k + 1), True) for k in range(-30, 30)]
    assert truths.in_pieces(0.5, steps, steps, 8) == pytest.approx(truths.gaussian(0.5), abs=2e-3)


def clayton_density(log_u, log_v, theta=0.8):
    powers = torch.logaddexp(-theta * log_u, -theta * log_v)
    log_sum = powers + torch.log1p(-torch.exp(-powers))
    return math.log1p(theta) - (1 + theta) * (log_u + log_v) - (2 + 1 / theta) * log_sum


def test_closed_forms_by_quadrature():
    assert truths.mixture(((0.0, 0.0, 0.6),), 1.0, 401) == pytest.approx(truths.gaussian(0.6), abs=1e-9)
    assert truths.copula(clayton_density, 401) == pytest.approx(truths.clayton(0.8), abs=1e-5)
    linear = truths.normal_noise(lambda x: x, lambda x: torch.full_like(x, 0.5), 1001)
    assert linear == pytest.approx(truths.gaussian(1 / math.hypot(1, 0.5)), abs=1e-6)
    assert truths.gamma_sum(1, 1) == pytest.approx(0.5772156649, abs=1e-9)  # Euler's constant


@pytest.mark.parametrize(("rho", "nu"), [(0.0, 3), (0.6, 5)])
def test_student_t_by_quadrature(rho, nu):
    """Over x = sinh(t)^3, which reaches the heavy tails."""
    t = torch.linspace(-3.2, 3.2, 1201, dtype=torch.float64)
    x = t.sinh() ** 3
    width = 3 * t.sinh() ** 2 * t.cosh() * (t[1] - t[0])
    square = (x[:, None] ** 2 - 2 * rho * x[:, None] * x + x**2) / (1 - rho**2)
    joint = (1 + square / nu) ** (-(nu + 2) / 2) * width[:, None] * width
    joint /= joint.sum()
    ratio = joint / (joint.sum(1, keepdim=True) * joint.sum(0)).clamp_min(1e-300)
    mi = float(torch.special.xlogy(joint, ratio.clamp_min(1e-300)).sum())
    assert mi == pytest.approx(truths.student_t(rho, nu), abs=2e-3)


def test_uniform_noise_and_disc_by_large_histograms():
    """Cells of a fine grid that the support covers in part cost a little: O(1 / points)."""
    points = 1500
    x = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    for width in (0.1, 0.75):
        y = -width + (1 + 2 * width) * x
        joint = ((y - x[:, None]).abs() < width).double()
        joint /= joint.sum()
        ratio = joint / (joint.sum(1, keepdim=True) * joint.sum(0)).clamp_min(1e-300)
        mi = float(torch.special.xlogy(joint, ratio.clamp_min(1e-300)).sum())
        assert mi == pytest.approx(truths.additive_uniform(width), abs=3e-3)
    place = 2 * x - 1
    joint = (place[:, None] ** 2 + place**2 < 1).double()
    joint /= joint.sum()
    ratio = joint / (joint.sum(1, keepdim=True) * joint.sum(0)).clamp_min(1e-300)
    assert float(torch.special.xlogy(joint, ratio.clamp_min(1e-300)).sum()) == pytest.approx(
        truths.disc(), abs=3e-3
    )


def test_quadratures_have_converged():
    for truth, parameter, tolerance in (
        (truths.ring, 0.15, 1e-7),
        (truths.ring, 0.3, 1e-7),
        (truths.gumbel, 3.0, 1e-6),
        (truths.frank, 12.0, 1e-6),
        (truths.fgm, 1.0, 1e-6),
    ):
        assert truth(parameter, 301) == pytest.approx(truth(parameter, 601), abs=tolerance)


def test_same_draws_for_every_estimator():
    first, again = (run.draws(CASES[3], 50, 2, seed=1) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], run.draws(CASES[3], 50, 2, seed=2)[0])


def test_ties_of_x_and_y_are_ordered_independently():
    """Mostly-zero columns whose zeros are in one order on both sides would seem to share most of their information."""
    x, y = torch.relu(torch.randn(2, 2000, 3, generator=torch.Generator().manual_seed(0)) - 1).unbind(0)
    assert estimators.ESTIMATORS["Gaussian"](x, y).max() < 0.01


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(estimators.PACKAGES, "KSG", "no_such_package")
    assert estimators.missing_package("KSG") == "no_such_package"
    assert estimators.missing_package("grid") is None


def test_rows_make_tables():
    cases = (CASES[0], CASES[1], CASES[4])
    rows = []
    for name in ("Gaussian", "grid, raw"):
        result = run.measure(estimators.ESTIMATORS[name], cases, 60, 3, seed=0)
        rows.append({"case": {"estimator": name, "M": 60}, "result": result})
    errors = page.by_estimator(rows)
    assert list(errors) == [("grid, raw", 60), ("Gaussian", 60)]
    reported = errors["Gaussian", 60].half("reported")
    assert list(reported.names) == ["gaussian 0.1"]
    estimates = rows[0]["result"]["cases"]["gaussian 0.1"]["estimates"]
    rmse = math.sqrt(sum((e - truths.gaussian(0.1)) ** 2 for e in estimates) / 3)
    assert page.mean_rmse(reported.values) == pytest.approx(rmse, abs=1e-6)
    line = next(x for x in page.error_table(errors).splitlines() if x.startswith("| Gaussian"))
    assert f"{rmse:.4f} (" in line
    assert "B-spline" not in page.summary_table(errors)
    assert "gaussian 0.9" in page.case_table(errors, 60, ("Gaussian",))


def test_ratios_have_intervals_by_group():
    cases = [
        case
        for case in CASES
        if case.name in ("gaussian 0.6", "gaussian 0.1", "shared mask 0.5", "shared mask 0.2")
    ]
    rows = []
    for name, seed in (("adaptive", 0), ("KSG", 1)):
        result = run.measure(estimators.ESTIMATORS["adaptive"], cases, 60, 4, seed=seed)
        rows.append({"case": {"estimator": name, "M": 60}, "result": result})
    errors = page.by_estimator(rows)
    assert errors["adaptive", 60].reported("tied").names.tolist() == ["shared mask 0.5", "shared mask 0.2"]
    ours, theirs = (page.mean_rmse(errors[name, 60].reported("tied").values) for name in ("adaptive", "KSG"))
    line = next(x for x in page.ratio_table(errors).splitlines() if "2 tied" in x)
    assert f"{ours / theirs:.2f} (" in line
    low, high = page.ratio_interval(*(errors[n, 60].reported("tied").values for n in ("adaptive", "KSG")))
    assert low <= ours / theirs <= high
    same = errors["KSG", 60].reported("continuous").values
    assert page.ratio_interval(same, same) == (1, 1)


def test_spread_is_compared_with_a_rule():
    """Draws whose spread is twice the rule for a mutual information of 1/2 log 4/3, whose correlation is 1/2."""
    truth = np.full(3, 0.5 * math.log(4 / 3))
    values = np.array([[1.0, -1.0]] * 3) * (2 * 0.5 / math.sqrt(100)) / math.sqrt(2)
    names = np.array(list("abc"))
    found = page.Errors(names, names, names, truth, values)
    assert page.spread_table({("adaptive", 100): found}).splitlines()[-1].count("2.00") == 5
