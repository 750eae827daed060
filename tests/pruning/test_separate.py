"""Repair of one projection from the moments of its inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.choose.explain import explained_variance
from pruning.model.ffn import find_ffns
from pruning.model.surgery import complement
from pruning.repair.separate import output_error, prune_separately, repair_projection

from tiny import assert_unchanged, state_of, statistics_of, tiny_model


def make(seed=0, n=12, tokens=400, d=5):
    torch.manual_seed(seed)
    z = torch.randn(tokens, n) @ torch.randn(n, n) + torch.randn(n)
    return z, torch.randn(d, n), statistics_of(z)


def error(z, weight, keep, projection):
    bias = 0 if projection.bias is None else projection.bias
    output = z.double() @ weight.double().T
    return (output - (z[:, keep].double() @ projection.weight.T + bias)).square().mean()


@given(seed=st.integers(0, 1000), dropped=st.integers(1, 11))
@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize("intercept", [True, False])
def test_least_squares_is_never_worse_than_no_repair_on_its_own_data(intercept, seed, dropped):
    z, _, statistics = make(seed)
    keep = torch.randperm(12)[dropped:].sort().values
    # The projection selects the dropped neurons, so that its error is the one that least squares minimizes.
    neurons = torch.eye(12)[complement(keep, 12)]
    cut = repair_projection(neurons, None, keep, statistics, "none", intercept=intercept)
    repaired = repair_projection(neurons, None, keep, statistics, "lstsq", intercept=intercept)
    assert (repaired.bias is not None) == intercept
    assert error(z, neurons, keep, repaired) <= error(z, neurons, keep, cut) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("repair", "intercept"),
    [("none", True), ("none", False), ("lstsq", True), ("lstsq", False), ("bias", True)],
)
def test_the_error_is_that_of_the_output_on_its_own_data(repair, intercept):
    z, weight, statistics = make(3)
    bias = torch.randn(len(weight)) if intercept else None
    keep = torch.arange(7)
    solution = repair_projection(weight, bias, keep, statistics, repair, intercept=intercept)
    z, offset = z.double(), 0 if bias is None else bias.double()
    dense = z @ weight.double().T + offset
    pruned = z[:, keep] @ solution.weight.T + (0 if solution.bias is None else solution.bias)
    expected = float((pruned - dense).square().sum() / dense.square().sum())
    assert expected > 0.001
    assert output_error(weight, bias, keep, solution, statistics) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_with_few_tokens_for_each_neuron_repair_does_no_harm_on_other_tokens(intercept):
    """Half of the variance of each neuron is shared: without a penalty, 120 tokens are fitted with 90 neurons."""
    torch.manual_seed(0)
    mixing = torch.randn(4, 100) / 2
    z, other = (torch.randn(n, 4) @ mixing + torch.randn(n, 100) for n in (120, 5000))
    weight, keep = torch.randn(8, 100), torch.arange(90)
    found = {
        repair: error(
            other,
            weight,
            keep,
            repair_projection(weight, None, keep, statistics_of(z), repair, intercept=intercept),
        )
        for repair in ("none", "lstsq")
    }
    assert found["lstsq"] < 0.8 * found["none"]


def test_linearly_dependent_neurons_are_replaced_by_the_kept_ones():
    torch.manual_seed(0)
    z = torch.randn(500, 8)
    z[:, 6] = z[:, 0] - 2 * z[:, 1]
    z[:, 7] = 0.5 * z[:, 2]
    weight, keep, statistics = torch.randn(4, 8), torch.arange(6), statistics_of(z)
    cut = error(z, weight, keep, repair_projection(weight, None, keep, statistics, "none", intercept=False))
    repaired = error(
        z, weight, keep, repair_projection(weight, None, keep, statistics, "lstsq", intercept=False)
    )
    assert repaired < 1e-3 * cut
    torch.testing.assert_close(
        explained_variance(statistics, keep, torch.tensor([6, 7])), torch.ones(2).double(), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("intercept", [True, False])
def test_a_massive_neuron_does_not_prevent_the_repair_of_the_others(intercept):
    torch.manual_seed(0)
    z = torch.randn(2000, 12)
    z[:, 0] *= 1000
    z[:, 11] = z[:, 1]
    neuron, keep = torch.eye(12)[11:], torch.arange(11)
    projection = repair_projection(neuron, None, keep, statistics_of(z), "lstsq", intercept=intercept)
    assert abs(projection.weight[0, 1] - 1) < 0.02
    assert explained_variance(statistics_of(z), keep, torch.tensor([11])).item() > 0.99


def test_explained_variance_does_not_count_the_fit_of_noise():
    torch.manual_seed(0)
    statistics = statistics_of(torch.randn(300, 160))
    assert explained_variance(statistics, torch.arange(150), torch.arange(150, 160)).mean() < 0.15


def test_the_explained_variance_of_independent_neurons_is_zero():
    torch.manual_seed(0)
    statistics = statistics_of(torch.randn(20_000, 6))
    assert explained_variance(statistics, torch.arange(5), torch.tensor([5])).item() < 0.01


def test_bias_repair_restores_the_mean_output():
    z, weight, statistics = make()
    keep, old = torch.arange(7), torch.randn(5)
    projection = repair_projection(weight, old, keep, statistics, "bias", intercept=True)
    expected = (z @ weight.T + old).double().mean(0)
    actual = z[:, keep].double().mean(0) @ projection.weight.T + projection.bias
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_bias_repair_of_a_projection_that_cannot_store_a_bias_is_an_error():
    _, weight, statistics = make()
    with pytest.raises(ValueError, match="expected a projection that can store a bias"):
        repair_projection(weight, None, torch.arange(7), statistics, "bias", intercept=False)


@pytest.mark.parametrize("repair", ["none", "bias", "lstsq"])
def test_keeping_all_neurons_changes_nothing(repair):
    _, weight, statistics = make()
    bias = torch.randn(5)
    projection = repair_projection(weight, bias, torch.arange(12), statistics, repair, intercept=True)
    assert torch.equal(projection.weight.float(), weight)
    assert torch.equal(projection.bias.float(), bias)


@pytest.mark.parametrize("intercept", [True, False])
def test_constant_silent_and_too_few_samples_give_finite_weights(intercept):
    torch.manual_seed(0)
    weight = torch.randn(4, 10)
    for z in (
        torch.zeros(50, 10),
        torch.ones(50, 10),
        torch.randn(3, 10),
        1e4 * torch.ones(50, 10) + torch.randn(50, 10),
    ):
        projection = repair_projection(
            weight, None, torch.arange(6), statistics_of(z), "lstsq", intercept=intercept
        )
        assert torch.isfinite(projection.weight).all()


def test_the_complement_holds_all_other_indices():
    assert complement(torch.tensor([0, 3]), 5).tolist() == [1, 2, 4]


def test_no_ffn_is_pruned_if_one_cannot_be_repaired(llama):
    before, ffns = state_of(llama), find_ffns(llama)
    statistics = statistics_of(torch.randn(100, 40))
    with pytest.raises(IndexError):
        prune_separately(
            ffns, [torch.arange(20), torch.arange(20), torch.tensor([40])], [statistics] * 3, "none"
        )
    assert_unchanged(llama, before)


@pytest.mark.parametrize("repair", ["none", "bias", "lstsq"])
@pytest.mark.parametrize("family", ["Llama", "Bert"])
def test_only_bias_repair_adds_a_bias(family, repair):
    ffn = find_ffns(tiny_model(family))[0]
    had_bias = ffn.output.bias is not None
    prune_separately([ffn], [torch.arange(20)], [statistics_of(torch.randn(100, 40))], repair)
    assert (ffn.output.bias is not None) == (had_bias or repair == "bias")
