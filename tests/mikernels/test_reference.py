"""The float64 reference against loops over the formulas and closed forms, and its independence of what it judges."""

import ast
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

import mikernels
from mikernels import mutual_information, reference
from mikernels.options import Problem, make_problem
from mikernels.reference.adaptive import Rung, extrapolate, lost_share, psi, smooth

from samples import column_pairs, gaussian


def imports_of_package():
    """`{module: modules of mikernels that it imports}`, anywhere in its source, from the syntax trees."""
    root = Path(mikernels.__file__).parent
    files = {
        ".".join(("mikernels", *f.relative_to(root).with_suffix("").parts)): f for f in root.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph = {}
    for module, file in files.items():
        named = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} has a relative import, which this test does not follow"
                named |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[module] = named & files.keys() - {"mikernels"}
    return graph


def reachable(graph, start):
    """Modules that `start` and its submodules import, directly or not."""
    seen, queue = set(), [m for m in graph if m == start or m.startswith(start + ".")]
    while queue:
        module = queue.pop()
        if module not in seen:
            seen.add(module)
            queue += graph[module]
    return seen


def test_reference_imports_only_itself_and_the_options():
    allowed = {m for m in imports_of_package() if m.startswith("mikernels.reference")}
    assert len(allowed) >= 5
    allowed |= {
        f"mikernels.{name}" for name in ("options", "numbers", "errors", "devices")
    }  # values, and their checks
    assert reachable(imports_of_package(), "mikernels.reference") <= allowed


@pytest.mark.parametrize("judged", ["torch_impl", "triton_impl", "adaptive", "tables"])
def test_judged_code_does_not_import_the_reference(judged):
    modules = reachable(imports_of_package(), f"mikernels.{judged}")
    assert len(modules) > 3
    assert not [m for m in modules if m.startswith("mikernels.reference")]


def test_only_the_engine_imports_the_reference():
    graph = imports_of_package()
    users = {m for m, named in graph.items() if any(n.startswith("mikernels.reference") for n in named)}
    assert {m for m in users if not m.startswith("mikernels.reference")} == {"mikernels.engine"}


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
def test_reference_equals_loops_over_the_formula(estimator, nodes, bandwidth, n_samples):
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
def test_bandwidth_rules_give_their_bandwidths(estimator, rule, bandwidth):
    assert make_problem(estimator, 16, rule, 4096).bandwidth == pytest.approx(bandwidth)


def test_grid_bandwidth_spans_at_least_three_quarters_of_a_node_spacing():
    assert make_problem("grid", 7, None, 4096).bandwidth == pytest.approx(0.75 * 4.8 / 6)
    assert make_problem("grid", 7, "silverman", 4096).bandwidth == pytest.approx(0.25)


def smoothed_grid(rho, h, nodes=16):
    """The limit of `grid` for many samples of a Gaussian pair, by quadrature."""
    t = np.linspace(-7, 7, 1401)
    distance = np.subtract.outer(t.clip(-2.4, 2.4), np.linspace(-2.4, 2.4, nodes))
    phi = np.exp(-((distance / h) ** 2) / 2)
    phi /= phi.sum(1, keepdims=True)
    density = np.exp(-(t[:, None] ** 2 - 2 * rho * np.outer(t, t) + t**2) / (2 - 2 * rho**2))
    joint = phi.T @ (density / density.sum()) @ phi
    return np.sum(joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0))))


def smoothed_kde(rho, h):
    """`E log f(x, y) / f(x) f(y)` over a Gaussian pair, with f its densities widened by h."""
    variance = 1 + h * h
    r = rho / variance
    quadratic = ((2 - 2 * r * rho) / (1 - r * r) - 2) / variance
    return -math.log(1 - r * r) / 2 - quadratic / 2


def smoothed_renyi2(rho, h):
    """`log E[kx^2 ky^2] / E[kx^2] E[ky^2]`, by Gaussian integrals over the differences."""
    return -math.log(1 - (4 * rho / (4 + h * h)) ** 2) / 2


@pytest.mark.parametrize("rho", CORRELATIONS)
@pytest.mark.parametrize(
    ("estimator", "bandwidth", "smoothed"),
    [("grid", 0.5, smoothed_grid), ("kde", 0.7, smoothed_kde), ("renyi2", 0.7, smoothed_renyi2)],
)
def test_reference_equals_the_closed_form_of_a_smoothed_gaussian_pair(estimator, bandwidth, smoothed, rho):
    # A golden-ratio lattice instead of random samples leaves no noise; the self terms of kde add 0.0025.
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
def test_bias_from_the_true_information_of_a_gaussian_pair_is_as_measured(estimator, rho, bias):
    x, independent = gaussian(1024, 16).split(8, dim=1)
    y = rho * x + math.sqrt(1 - rho * rho) * independent
    mi = column_pairs(x, y, estimator=estimator, impl="reference").mean()
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


def test_psi_is_the_digamma_function():
    x = torch.arange(1, 51, dtype=torch.float64)
    error = (psi(x) - torch.special.digamma(x)).abs()
    assert error[0] < 0.03
    assert error[1:].max() < 1e-3
    assert error[10:].max() < 1e-5


@pytest.mark.parametrize(("cells", "h"), [(8, 1.0), (32, math.sqrt(2))])
def test_rung_of_adaptive_equals_loops_over_the_formula(cells, h):
    n_samples = 40
    x, noise = torch.special.ndtri(
        torch.rand(2, n_samples, generator=torch.Generator().manual_seed(0)) * 0.999
    )
    y = (x + noise) / math.sqrt(2)
    phi = NormalDist().cdf

    def cell(q):
        q = min(max(q, -3.4), 3.4)
        return min(int((phi(q / 1.2) - phi(-3.4 / 1.2)) / (1 - 2 * phi(-3.4 / 1.2)) * cells), cells - 1)

    def kernel(distance):
        return math.exp(-(distance**2) / (2 * h**2))

    a, b = [cell(q) for q in x.tolist()], [cell(q) for q in y.tolist()]
    value = 0.0
    for i in range(n_samples):
        sx, sy = [kernel(a[i] - a_j) for a_j in a], [kernel(b[i] - b_j) for b_j in b]
        f = 2 * sum(u * v for u, v in zip(sx, sy, strict=True))
        digamma = math.log((f - 1.5) ** 2 + 1 / 12) / 2
        log_margins = math.log(sum(sx) * sum(sy) / n_samples**2)
        value += (digamma - math.log(2 * (n_samples - 1)) - log_margins) / n_samples
    rung = smooth(x.double() + 0j, y.double() + 0j, cells, h)
    assert rung.value == pytest.approx(value, rel=1e-10)
    assert rung.log_count == pytest.approx(
        value + math.log(4 * math.pi * h**2 * n_samples / cells**2), rel=1e-10
    )
    assert rung.likelihood < rung.value


def test_evenly_spread_samples_have_no_information_on_rungs_of_large_boxes():
    rank = torch.arange(900, dtype=torch.float64)
    scores = torch.special.ndtri((rank + 0.5) / 900)
    x, y = scores, scores[(rank.long() % 30) * 30 + rank.long() // 30]
    for cells, h in [(8, 1.0), (8, math.sqrt(2)), (4, 1.0), (4, math.sqrt(2))]:
        assert abs(smooth(x + 0j, y + 0j, cells, h).value) < 0.01


@pytest.mark.parametrize("a", [0.3, 0.5, 0.9])
def test_extrapolation_of_a_gaussian_ridge_is_exact(a):
    """Up to the least share of 1/2, and where its ratio cannot be confused with that of an edge."""
    loss = [0.5 * math.log(1 + scale * a) for scale in (1, 4, 16)]
    share = loss[0] / (loss[1] - loss[0])
    assert lost_share(loss[1] - loss[0], loss[2] - loss[1]) == pytest.approx(max(share, 0.5))


def test_extrapolation_of_a_sharp_edge_adds_about_the_first_difference_again():
    assert lost_share(0.05, 0.1) == pytest.approx(1, abs=0.15)


def test_extrapolation_uses_the_finest_filled_rung_and_what_predicts_best():
    coarse = [Rung(0.1, -1.0, 3.0)] * 4
    empty = Rung(9.0, 9.0, math.log(5.9))
    good = Rung(1.0, 1.0, math.log(6.1))
    assert extrapolate([empty, good, *coarse], 1000) == pytest.approx(
        extrapolate([good, good, *coarse], 1000)
    )
    assert 1.0 <= extrapolate([good, good, *coarse], 1000) < 2.0
