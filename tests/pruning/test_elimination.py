"""Backward elimination by conditional mutual information."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import prune
from pruning.choose import elimination
from pruning.choose.elimination import conditional_mi

from tiny import statistics_of, tiny_model


def least_squares_error(z, y, kept):
    """Mean squared error of predicting y [T, d] from the kept columns of z [T, N], both centered."""
    fit = torch.linalg.lstsq(z[:, kept], y).solution
    return float((y - z[:, kept] @ fit).square().sum() / len(z))


@pytest.mark.parametrize("seed", range(3))
def test_each_step_drops_the_neuron_that_least_squares_misses_least(seed, monkeypatch):
    """Against a search that solves every regression from scratch; more neurons than one block."""
    monkeypatch.setattr(elimination, "VARIANCE_RIDGE", 1e-6)
    monkeypatch.setattr(elimination, "BLOCK", 4)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(400, 14, generator=generator) @ torch.randn(14, 14, generator=generator)
    z = (z - z.mean(0)).double()
    weight = torch.randn(5, 14, generator=generator).double()
    y = z @ weight.T
    order, damage = conditional_mi(z.T @ z / len(z), weight)
    kept = list(range(14))
    for step in range(10):
        errors = {d: least_squares_error(z, y, [k for k in kept if k != d]) for d in kept}
        best = min(errors, key=errors.get)
        assert int(order[step]) == best
        share = errors[best] / float(y.square().sum() / len(z))
        assert float(damage[step + 1]) == pytest.approx(share, rel=1e-2, abs=1e-5)
        kept.remove(best)


def eliminated_in_float64(covariance, weight):
    """Without blocks: the projection and the inverse are updated after every step."""
    deviation = covariance.diagonal().sqrt()
    correlation = covariance / torch.outer(deviation, deviation)
    correlation.diagonal().add_(elimination.VARIANCE_RIDGE)
    inverse, projection, order = correlation.inverse(), weight * deviation, []
    for _ in range(len(covariance)):
        cost = projection.square().sum(0) / inverse.diagonal().clamp_min(1e-12)
        cost[order] = torch.inf
        d = int(cost.argmin())
        order.append(d)
        row = inverse[d] / inverse[d, d]
        projection = projection - torch.outer(projection[:, d], row)
        inverse = inverse - torch.outer(inverse[d], row)
    return torch.tensor(order)


@pytest.mark.parametrize("d", [5, 24, 150])
@pytest.mark.parametrize("form", ["_Projection", "_Gram"])
def test_both_forms_give_the_order_of_float64_and_stopping_early_its_beginning(d, form, monkeypatch):
    """Over more than two blocks, with few and many outputs."""
    monkeypatch.setattr(elimination, "_Projection", getattr(elimination, form))  # which the CPU takes
    generator = torch.Generator().manual_seed(d)
    z = torch.randn(600, 150, generator=generator) @ torch.randn(150, 150, generator=generator) / 12
    covariance = torch.nn.functional.silu(z).double().T.cov(correction=0)
    weight = torch.randn(d, 150, generator=generator).double()
    order, damage = conditional_mi(covariance, weight)
    assert order.tolist() == eliminated_in_float64(covariance, weight).tolist()
    for n in (0, 1, 64, 65, 149):
        beginning = conditional_mi(covariance, weight, n)
        assert beginning.order.equal(order[:n])
        assert beginning.damage.equal(damage[: n + 1])


@given(n=st.integers(2, 40), rank=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_order_is_a_permutation_and_the_damage_rises_to_1_for_any_rank(n, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(50, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
    z[:, 0] = 1.0  # constant
    z[:, -1] *= 1e4  # massive
    order, damage = conditional_mi(statistics_of(z).covariance, torch.randn(3, n, generator=generator))
    assert sorted(order.tolist()) == list(range(n))
    assert damage[0] == 0
    assert (damage.diff() >= 0).all()
    assert float(damage[-1]) == pytest.approx(1.0, abs=0.02)


def test_constant_neurons_and_one_of_two_copies_are_dropped_first():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 6, generator=generator)
    z[:, 1], z[:, 4] = 3.0, z[:, 2]
    order, damage = conditional_mi(statistics_of(z).covariance, torch.ones(4, 6))
    assert int(order[0]) == 1
    assert int(order[1]) in (2, 4)
    assert float(damage[2]) < 0.05 < float(damage[3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 20),
        ({"criterion": "flap"}, 0),
        ({"budget": "mi"}, 32),  # 0.8 of 40
        ({"budget": "mi", "max_layer_ratio": 0.4}, 20),  # the damage of half of the layer is compared
        ({"budget": "kl", "criterion": "flap"}, 32),
    ],
)
def test_only_as_many_neurons_are_ordered_as_the_settings_need(options, expected, windows, monkeypatch):
    lengths = []

    def spy(covariance, weight, n_drop=None):
        lengths.append(n_drop)
        return conditional_mi(covariance, weight, n_drop)

    monkeypatch.setattr("pruning.choose.evidence.conditional_mi", spy)
    model, sizes = tiny_model("Llama"), {"ratio": 0.375 if "max_layer_ratio" in options else 0.5}
    prune(model, None, calibration=windows, multiple_of=2, sample_size=128, **(sizes | options))
    assert lengths == [expected] * 3
