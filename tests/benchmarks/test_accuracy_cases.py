"""The truths of the accuracy benchmark, and the benchmark itself on tiny samples."""

import json
import math

import pytest
import torch

from benchmarks.accuracy import estimators, report, run, truths
from benchmarks.accuracy.cases import CASES


def test_both_halves_have_every_family():
    families = {case.family for case in CASES}
    for half in ("tuning", "reported"):
        assert {case.family for case in CASES if case.half == half} == families
    assert len(CASES) >= 26
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_draws_are_finite_and_follow_the_truth(case):
    """A sample of 4,000 and a plain histogram of its ranks: at most the truth, and not far below."""
    x, y = case.draw(torch.Generator().manual_seed(0), 4000)
    assert x.shape == y.shape == (4000,)
    assert x.isfinite().all()
    assert y.isfinite().all()
    bins = 24
    place = x.argsort().argsort() * bins // 4000 * bins + y.argsort().argsort() * bins // 4000
    share = torch.bincount(place, minlength=bins**2).double() / 4000
    plug_in = float(torch.special.xlogy(share, share * bins**2).sum())
    bias = (bins - 1) ** 2 / (2 * 4000)
    assert plug_in - bias < case.mi + 0.05
    assert plug_in > 0.6 * min(case.mi, math.log(bins))


def test_closed_forms_by_quadrature():
    def correlated(rho):
        return truths.density(truths.mixture_density(((0.0, 0.0, rho),), 1.0), 8.0, 401)

    assert correlated(0.6) == pytest.approx(truths.gaussian(0.6), abs=1e-9)
    assert truths.copula(truths.clayton_density(0.8), 401) == pytest.approx(truths.clayton(0.8), abs=1e-5)
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
    for density, reach in ((truths.ring_density(0.15), 2.2), (truths.ring_density(0.3), 3.4)):
        assert truths.density(density, reach, 301) == pytest.approx(
            truths.density(density, reach, 601), abs=1e-7
        )
    for log_density in (truths.gumbel_density(3.0), truths.frank_density(12.0), truths.fgm_density(1.0)):
        assert truths.copula(log_density, 301) == pytest.approx(truths.copula(log_density, 601), abs=1e-6)


def test_same_draws_for_every_estimator():
    first, again = (run.draws(CASES[3], 50, 2, seed=1) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], run.draws(CASES[3], 50, 2, seed=2)[0])


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(estimators.PACKAGES, "KSG", "no_such_package")
    assert estimators.missing_package("KSG") == "no_such_package"
    assert estimators.missing_package("grid") is None


def test_rows_make_a_table(tmp_path):
    cases = (CASES[0], CASES[1], CASES[4])
    rows = []
    for name in ("grid, raw", "Gaussian"):
        result = run.measure(estimators.ESTIMATORS[name], cases, 60, 3, seed=0)
        rows.append({"case": {"estimator": name, "M": 60}, "result": result})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = report.load(path)
    assert list(loaded) == [("grid, raw", 60), ("Gaussian", 60)]
    assert loaded["Gaussian", 60].values.shape == (3, 3)
    low, high = report.interval(loaded["Gaussian", 60].values)
    assert low <= report.mean_rmse(loaded["Gaussian", 60].values) <= high
    assert "| Gaussian |" in report.table(loaded)
    assert "B-spline" not in report.readme_table(loaded)
    assert "gaussian 0.9" in report.case_table(loaded, 60, ("Gaussian",))
