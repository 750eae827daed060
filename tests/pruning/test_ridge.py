"""Ridge regression whose strength follows from the data."""

import pytest
import torch

from pruning.repair.ridge import adapted_ridge, ridge


def moments(n_tokens, noise, seed):
    """Mean products of 40 regressors, with 5 targets that they explain in part, and the energy of these."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n_tokens, 40, generator=generator).double() @ MIXING
    y = z @ COEFFICIENTS + noise * torch.randn(n_tokens, 5, generator=generator).double()
    return z.t() @ z / n_tokens, z.t() @ y / n_tokens, float(y.square().sum() / n_tokens)


MIXING = torch.randn(40, 40, generator=torch.Generator().manual_seed(1)).double() / 6 + torch.eye(40)
COEFFICIENTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("n_tokens", [30, 60, 200, 5000])
@pytest.mark.parametrize("noise", [0.5, 5.0, 20.0])
def test_on_other_data_it_is_close_to_the_best_strength_in_hindsight(n_tokens, noise):
    gram, cross, energy = moments(n_tokens, noise, seed=3)
    other, other_cross, other_energy = moments(100_000, noise, seed=4)

    def lost(found):
        explained = (found * (2 * other_cross - other @ found)).sum()
        return float(other_energy - explained) / other_energy

    best = min(lost(ridge(gram, cross, 2.0**i)) for i in range(-12, 12))
    assert lost(adapted_ridge(gram, cross, energy, n_tokens)) < 1.12 * best + 0.005


def test_targets_that_are_sums_of_regressors_are_restored():
    gram, cross, energy = moments(5000, 0.0, seed=3)
    change = adapted_ridge(gram, cross, energy, 5000) - COEFFICIENTS
    assert (change * (gram @ change)).sum() < 1e-3 * energy


def test_silent_targets_need_nothing():
    gram, cross, _ = moments(5000, 0.0, seed=3)
    assert not adapted_ridge(gram, torch.zeros_like(cross), 0.0, 5000).any()


def test_a_free_constant_takes_the_mean_and_no_moment_is_changed():
    torch.manual_seed(0)
    z = torch.cat([torch.randn(500, 6), torch.ones(500, 1)], dim=1).double()
    y = 0.1 * z[:, :2] + 100.0
    gram, before = z.t() @ z, z.t() @ z
    found = adapted_ridge(gram, z.t() @ y, float(y.square().sum()), 500, n_free=1)
    assert torch.equal(gram, before)
    torch.testing.assert_close((z @ found).mean(0), y.mean(0))
