"""The curve from estimates to nats."""

import math

import pytest
import torch

from mikernels import mutual_information
from mikernels.options import make_problem
from mikernels.tuning.calibration import Curve, _increasing, gaussian_curve

from samples import column_pairs, correlated, gaussian, off_diagonal

CURVE = Curve(torch.tensor([0.1, 0.2, 0.6]).double(), torch.tensor([0.0, 0.5, 1.0]).double())


def test_linear_between_points_and_slope_one_beyond():
    raw = torch.tensor([[0.0, 0.1, 0.15], [0.4, 0.6, 1.6]])
    expected = torch.tensor([[-0.1, 0.0, 0.25], [0.75, 1.0, 2.0]])
    torch.testing.assert_close(CURVE(raw), expected)
    assert CURVE(raw).dtype == torch.float32


def test_keeps_points_that_rise_and_stops_at_saturation():
    nats = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).double()
    curve = _increasing(torch.tensor([0.0, 0.75, 0.5, 2.5, 2.53125]).double(), nats)
    assert curve.raw.tolist() == [0.0, 0.75, 2.5]
    assert curve.nats.tolist() == [0.0, 1.0, 3.0]


def test_an_estimate_that_never_rises_is_an_error():
    with pytest.raises(ValueError, match="calibrate: expected an estimate that grows"):
        _increasing(torch.zeros(3).double(), torch.arange(3).double())


@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2", "adaptive"])
def test_gaussian_copulas_come_out_right(estimator):
    """0.35 nats at M = 500, where one pair's standard error is 0.03 and the raw `kde` says 0.26."""
    nats = 0.35
    x, z = gaussian(500, 8, 1), gaussian(500, 8, 2)
    y = math.sqrt(-math.expm1(-2 * nats)) * x + math.exp(-nats) * z
    mi = column_pairs(x, y, estimator=estimator, calibrate=True)
    assert abs(mi.mean() - nats) < 0.04


@pytest.mark.parametrize("estimator", ["grid", "kde"])
def test_the_order_of_pairs_stays(estimator):
    x = correlated(200, 8)
    raw = off_diagonal(mutual_information(x, estimator=estimator))
    mapped = off_diagonal(mutual_information(x, estimator=estimator, calibrate=True))
    order = raw.argsort(stable=True)
    assert (mapped[order].diff() >= 0).all()
    assert not torch.equal(raw, mapped)


def test_cached_and_the_same_again():
    problem = make_problem("grid", 16, None, 100)
    curve = gaussian_curve(100, problem)
    assert gaussian_curve(100, problem) is curve
    gaussian_curve.cache_clear()
    assert torch.equal(gaussian_curve(100, problem).raw, curve.raw)


def test_constant_variables_stay_at_zero():
    x = correlated(64, 3)
    x[:, 2] = 1.0
    mi = mutual_information(x, calibrate=True)
    assert (mi[2] == 0).all()
    assert (mi[:, 2] == 0).all()


def test_needs_ranks():
    with pytest.raises(ValueError, match="transform: expected 'rank' with calibrate=True, got 'standardize'"):
        mutual_information(gaussian(64, 3), transform="standardize", calibrate=True)
