"""The curve from estimates to nats."""

import json
import math

import pytest
import torch

from benchmarks.accuracy import gaussian_curves
from mikernels import clear_caches, mutual_information
from mikernels.options import make_problem
from mikernels.tables.gaussian import gaussian_nats, tabulated_estimates
from mikernels.tuning import calibration
from mikernels.tuning.calibration import Curve, _increasing, gaussian_curve, simulated_estimates

from samples import correlated, gaussian, off_diagonal

CPU = torch.device("cpu")
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
    mi = mutual_information(x, y, estimator=estimator, calibrate=True).diagonal()
    assert abs(mi.mean() - nats) < 0.04


@pytest.mark.parametrize("n_samples", [8, 9, 20, 64])
@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2", "adaptive"])
def test_gaussian_copulas_come_out_right_of_few_samples(estimator, n_samples):
    """The mean estimate of some hundred pairs."""
    n_pairs = 150 if estimator == "adaptive" else 500
    x, z = gaussian(n_samples, n_pairs, 1), gaussian(n_samples, n_pairs, 2)
    curve = gaussian_curve(n_samples, make_problem(estimator, 16, None, n_samples), CPU)
    for nats in (0.2, 0.4):
        y = math.sqrt(-math.expm1(-2 * nats)) * x + math.exp(-nats) * z
        raw = mutual_information(x, y, estimator=estimator, calibrate=False).diagonal()
        error = float(raw.std()) / math.sqrt(len(raw))
        found = [float(curve(raw.mean() + step * error)) for step in (-4, 4)]
        assert found[0] < nats < found[1]
        assert found[1] - found[0] < 0.5


@pytest.mark.parametrize("estimator", ["grid", "adaptive"])
def test_gaussian_copulas_come_out_right_beyond_the_table(estimator, simulated):
    """400,000 samples: against the closed form at the correlation that they have, of which chance is the same."""
    x, z = gaussian(400_000, 2).t().double()
    for nats in (0.0, 0.1, 0.5):
        y = math.sqrt(-math.expm1(-2 * nats)) * x + math.exp(-nats) * z
        rho = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
        mi = mutual_information(torch.stack([x, y], 1), estimator=estimator, calibrate=True)[0, 1]
        assert float(mi) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.003)
    assert simulated == []


@pytest.mark.parametrize("estimator", ["grid", "kde"])
def test_the_order_of_pairs_stays(estimator):
    x = correlated(200, 8)
    raw = off_diagonal(mutual_information(x, estimator=estimator))
    mapped = off_diagonal(mutual_information(x, estimator=estimator, calibrate=True))
    order = raw.argsort(stable=True)
    assert (mapped[order].diff() >= 0).all()
    assert not torch.equal(raw, mapped)


@pytest.mark.parametrize("bandwidth", [None, 0.5])
def test_cached_and_the_same_again(bandwidth):
    problem = make_problem("grid", 16, bandwidth, 100)
    curve = gaussian_curve(100, problem, CPU)
    assert gaussian_curve(100, problem, CPU) is curve
    clear_caches()
    again = gaussian_curve(100, problem, CPU)
    assert again is not curve
    assert torch.equal(again.raw, curve.raw)


@pytest.fixture
def simulated(monkeypatch):
    """The number of samples of every simulation, and its device."""
    calls = []
    original = calibration.simulated_estimates

    def recorded(n_samples, problem, device, draws):
        calls.append((n_samples, device))
        return original(n_samples, problem, CPU, draws)

    monkeypatch.setattr(calibration, "simulated_estimates", recorded)
    clear_caches()
    yield calls
    clear_caches()


@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2", "adaptive"])
def test_default_options_simulate_nothing(estimator, simulated):
    for n_samples in (12, 100, 1001):
        mutual_information(gaussian(n_samples, 2), estimator=estimator, calibrate=True)
        # `adaptive`, `kde` and `renyi2` have no nodes
        problem = make_problem(estimator, 16 if estimator == "grid" else 24, None, n_samples)
        gaussian_curve(n_samples, problem, CPU)
    assert simulated == []


@pytest.mark.parametrize(
    ("n_samples", "options"),
    [
        (64, {"estimator": "kde", "bandwidth": 0.4}),
        (64, {"estimator": "grid", "nodes": 24}),
    ],
)
def test_other_options_are_simulated_once(n_samples, options, simulated):
    for _ in range(2):
        mutual_information(gaussian(n_samples, 2), calibrate=True, **options)
    assert simulated == [(n_samples, CPU)]


@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2", "adaptive"])
def test_the_table_ends_where_its_script_ends(estimator):
    largest = gaussian_curves.LARGEST[estimator]
    beyond = estimator in ("grid", "adaptive")
    for n_samples, inside in ((7, False), (8, True), (largest, True), (largest + 1, beyond)):
        row = tabulated_estimates(n_samples, make_problem(estimator, 16, None, n_samples))
        assert (row is not None) == inside


def test_simulation_runs_on_the_device_of_the_caller(monkeypatch):
    """The meta device stands in for a GPU."""
    devices = []
    original = calibration.transform_samples

    def recorded(x, *args, **keywords):
        devices.append(x.device.type)
        return original(x.cpu() if x.device.type == "cpu" else gaussian(64, x.shape[1]), *args, **keywords)

    monkeypatch.setattr(calibration, "transform_samples", recorded)
    problem = make_problem("kde", 16, 0.5, 64)
    calibration.simulated_estimates(64, problem, torch.device("meta"), 1)
    assert devices == ["meta", "meta"]


@pytest.mark.parametrize(
    ("estimator", "n_samples"), [("grid", 8192), ("kde", 128), ("renyi2", 128), ("adaptive", 16_384)]
)
def test_the_table_is_what_its_script_simulates(estimator, n_samples):
    problem = make_problem(estimator, 16, None, n_samples)
    row = torch.tensor(gaussian_curves.table_row(estimator, n_samples), dtype=torch.float64)
    torch.testing.assert_close(tabulated_estimates(n_samples, problem), row, rtol=0, atol=1e-4)


def test_the_table_has_every_entry_of_its_script():
    table = json.loads(gaussian_curves.FILE.read_text())
    assert table.keys() == gaussian_curves.LARGEST.keys()
    for estimator, rows in table.items():
        assert [int(m) for m in rows] == gaussian_curves.sample_counts(estimator)
        assert all(len(row) == len(gaussian_nats()) for row in rows.values())


@pytest.mark.parametrize(("estimator", "n_samples"), [("grid", 600), ("kde", 150), ("renyi2", 150)])
def test_between_entries_the_table_is_near_a_simulation(estimator, n_samples):
    """The nats of estimates up to 1 nat; the noise of the simulation is about 0.005."""
    problem = make_problem(estimator, 16, None, n_samples)
    raw = simulated_estimates(n_samples, problem, CPU, 64)
    simulation, table = _increasing(raw, gaussian_nats()), gaussian_curve(n_samples, problem, CPU)
    estimates = simulation.raw[simulation.nats < 1]
    assert (simulation(estimates) - table(estimates)).abs().max() < 0.02


def test_constant_variables_stay_at_zero():
    x = correlated(64, 3)
    x[:, 2] = 1.0
    mi = mutual_information(x, calibrate=True)
    assert (mi[2] == 0).all()
    assert (mi[:, 2] == 0).all()


def test_needs_ranks():
    with pytest.raises(ValueError, match="transform: expected 'rank' with calibrate=True, got 'standardize'"):
        mutual_information(gaussian(64, 3), transform="standardize", calibrate=True)
