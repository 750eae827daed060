"""The float64 definitions against loops over the formulas and closed forms for Gaussian pairs."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from mikernels import mutual_information, reference
from mikernels.options import Problem, make_problem

from samples import gaussian

ESTIMATORS = ["grid", "kde", "renyi2"]
CORRELATIONS = [0.0, 0.3, 0.6, 0.9]


def grid_by_loops(x, y, nodes, h):
    places = [-2.4 + 4.8 * g / (nodes - 1) for g in range(nodes)]

    def shares(value):
        value = min(max(value, -2.4), 2.4)
        weights = [math.exp(-(((value - place) / h) ** 2) / 2) for place in places]
        return [weight / sum(weights) for weight in weights]

    phi_x, phi_y = [shares(v) for v in x], [shares(v) for v in y]
    total = 0.0
    for a in range(nodes):
        for b in range(nodes):
            joint = sum(p[a] * q[b] for p, q in zip(phi_x, phi_y, strict=True)) / len(x)
            product = sum(p[a] for p in phi_x) * sum(q[b] for q in phi_y) / len(x) ** 2
            total += joint * math.log(joint / product)
    return total


def kde_by_loops(x, y, nodes, h):
    def density(point, *columns):
        kernels = (
            math.exp(-sum((c[point] - c[j]) ** 2 for c in columns) / (2 * h * h)) for j in range(len(x))
        )
        return sum(kernels) / len(x)

    logs = (math.log(density(i, x, y) / density(i, x) / density(i, y)) for i in range(len(x)))
    return sum(logs) / len(x)


def renyi2_by_matrices(x, y, nodes, h):
    def gram(values):
        return np.exp(-(np.subtract.outer(values, values) ** 2) / (2 * h * h)) / len(values)

    def entropy(matrix):
        return -math.log(np.trace(matrix @ matrix))

    a, b = gram(x), gram(y)
    hadamard = a * b
    return entropy(a) + entropy(b) - entropy(hadamard / np.trace(hadamard))


BY_HAND = {"grid": grid_by_loops, "kde": kde_by_loops, "renyi2": renyi2_by_matrices}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("nodes", [2, 5])
@pytest.mark.parametrize("bandwidth", [0.4, 1.3])
@pytest.mark.parametrize("n_samples", [8, 11])
def test_reference_is_the_formula(estimator, nodes, bandwidth, n_samples):
    x, y = gaussian(n_samples, 3).double().T, 2 * gaussian(n_samples, 2, seed=1).double().T
    mi = reference.mutual_information(x, y, Problem(estimator, nodes, bandwidth))
    by_hand = [[BY_HAND[estimator](a.numpy(), b.numpy(), nodes, bandwidth) for b in y] for a in x]
    assert mi.numpy() == pytest.approx(np.array(by_hand), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rank_transform_feeds_normal_quantiles_to_the_formula(estimator):
    x = gaussian(10, 2)
    quantiles = np.array([NormalDist().inv_cdf((rank + 0.5) / 10) for rank in range(10)])
    scores = [quantiles[np.argsort(np.argsort(column))] for column in x.T.numpy()]
    mi = mutual_information(x, estimator=estimator, nodes=5, bandwidth=0.5, impl="reference")
    assert float(mi[0, 1]) == pytest.approx(BY_HAND[estimator](*scores, 5, 0.5), rel=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_standardize_feeds_z_scores_to_the_formula(estimator):
    x = 3 + 7 * gaussian(10, 2)
    scores = [(column - column.mean()) / column.std() for column in x.T.double().numpy()]
    mi = mutual_information(
        x, estimator=estimator, nodes=5, bandwidth=0.5, transform="standardize", impl="reference"
    )
    assert float(mi[0, 1]) == pytest.approx(BY_HAND[estimator](*scores, 5, 0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "rule", "bandwidth"),
    [
        ("kde", None, 4096 ** (-1 / 6)),
        ("renyi2", None, 4096 ** (-1 / 6)),
        ("grid", None, 4096 ** (-1 / 6)),
        ("grid", "silverman", 4096 ** (-1 / 6)),
        ("grid", 0.1, 0.1),
    ],
)
def test_bandwidth_rules(estimator, rule, bandwidth):
    assert make_problem(estimator, 16, rule, 4096).bandwidth == pytest.approx(bandwidth)


def test_grid_bandwidth_spans_at_least_three_quarters_of_a_node_spacing():
    assert make_problem("grid", 7, None, 4096).bandwidth == pytest.approx(0.75 * 4.8 / 6)
    assert make_problem("grid", 7, "silverman", 4096).bandwidth == pytest.approx(0.25)


def smoothed_grid(rho, h, nodes=16):
    """`grid` of a Gaussian pair in the limit of many samples, by quadrature."""
    t = np.linspace(-7, 7, 1401)
    distance = np.subtract.outer(t.clip(-2.4, 2.4), np.linspace(-2.4, 2.4, nodes))
    phi = np.exp(-((distance / h) ** 2) / 2)
    phi /= phi.sum(1, keepdims=True)
    density = np.exp(-(t[:, None] ** 2 - 2 * rho * np.outer(t, t) + t**2) / (2 - 2 * rho**2))
    joint = phi.T @ (density / density.sum()) @ phi
    return np.sum(joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0))))


def smoothed_kde(rho, h):
    """`E log f(x, y) / f(x) f(y)` with f the Gaussian densities widened by h, under the pair itself."""
    variance = 1 + h * h
    r = rho / variance
    quadratic = ((2 - 2 * r * rho) / (1 - r * r) - 2) / variance
    return -math.log(1 - r * r) / 2 - quadratic / 2


def smoothed_renyi2(rho, h):
    """`log E[kx^2 ky^2] / E[kx^2] E[ky^2]`: the kernels are Gaussian integrals of the differences."""
    return -math.log(1 - (4 * rho / (4 + h * h)) ** 2) / 2


@pytest.mark.parametrize("rho", CORRELATIONS)
@pytest.mark.parametrize(
    ("estimator", "bandwidth", "smoothed"),
    [("grid", 0.5, smoothed_grid), ("kde", 0.7, smoothed_kde), ("renyi2", 0.7, smoothed_renyi2)],
)
def test_reference_is_the_closed_form_of_a_smoothed_gaussian_pair(estimator, bandwidth, smoothed, rho):
    # A golden-ratio lattice in place of random samples leaves no noise; the self terms of kde add 0.0025.
    index = np.arange(1597)
    uniform = np.stack([(index + 0.5) / 1597, (index * (math.sqrt(5) - 1) / 2 + 0.5 / 1597) % 1])
    x, independent = torch.special.ndtri(torch.from_numpy(uniform))
    y = rho * x + math.sqrt(1 - rho * rho) * independent
    mi = reference.mutual_information(x[None], y[None], Problem(estimator, 16, bandwidth))
    assert float(mi) == pytest.approx(smoothed(rho, bandwidth), abs=0.004)


BIAS_AT_1024_SAMPLES = {
    # Measured over 96 pairs; the standard error of a mean of 8 pairs is at most 0.006.
    "grid": [0.007, -0.004, -0.046, -0.287],
    "kde": [0.031, 0.026, 0.011, -0.088],
    "renyi2": [0.029, 0.023, 0.004, -0.087],
}


@pytest.mark.parametrize(
    ("estimator", "rho", "bias"),
    [
        (estimator, rho, bias)
        for estimator, biases in BIAS_AT_1024_SAMPLES.items()
        for rho, bias in zip(CORRELATIONS, biases, strict=True)
    ],
)
def test_bias_from_the_true_information_of_a_gaussian_pair(estimator, rho, bias):
    x, independent = gaussian(1024, 16).split(8, dim=1)
    y = rho * x + math.sqrt(1 - rho * rho) * independent
    mi = mutual_information(x, y, estimator=estimator, impl="reference").diag().mean()
    true = -math.log(1 - rho * rho) / 2
    assert float(mi) - true == pytest.approx(bias, abs=0.015)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("transform", ["rank", "standardize"])
def test_information_grows_with_correlation(estimator, transform):
    x, independent = gaussian(512, 2).split(1, dim=1)
    rho = torch.tensor([0, 0.4, 0.6, 0.8, 0.9, 0.99])
    y = rho * x + (1 - rho.square()).sqrt() * independent
    mi = mutual_information(x, y, estimator=estimator, transform=transform, impl="reference")[0]
    assert (mi.diff() > 0).all()
