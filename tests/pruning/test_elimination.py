"""Backward elimination by conditional mutual information."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.choose import elimination
from pruning.choose.elimination import conditional_mi

from tiny import statistics_of


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
