"""Ties add no information, neither by their order nor by their number."""

import pytest
import torch

from mikernels import mutual_information
from mikernels.transforms import hash32, transform_samples

from samples import correlated, gaussian, off_diagonal

ESTIMATORS = ["grid", "kde", "renyi2"]
TRANSFORMS = ["rank", "standardize"]
IMPLS = ["torch", "reference"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dead_share", [0.5, 0.93, 0.98])
def test_mostly_zero_neurons_look_no_more_dependent_than_continuous_ones(estimator, dead_share):
    x = gaussian(512, 16)
    threshold = torch.distributions.Normal(0, 1).icdf(torch.tensor(dead_share))
    continuous = off_diagonal(mutual_information(x, estimator=estimator))
    sparse = off_diagonal(mutual_information(torch.relu(x - threshold), estimator=estimator))
    # Chance gives a table of d + 1 by d + 1 cells d^2 / 2M nats; the zeros are one more cell.
    d = (2 * 512 * float(continuous.mean())) ** 0.5
    assert sparse.mean() < (d + 1) ** 2 / (2 * 512) * 1.1
    assert sparse.max() < 1.5 * continuous.max() * ((d + 1) / d) ** 2


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_ties_of_two_inputs_are_ordered_independently(estimator):
    x, y = torch.relu(gaussian(512, 24) - 1.5).split(12, dim=1)
    independent = mutual_information(*gaussian(512, 24).split(12, dim=1), estimator=estimator)
    assert mutual_information(x, y, estimator=estimator).max() < 1.3 * independent.max()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_constant_neuron_shares_no_information(estimator, transform, impl):
    x = gaussian(100, 5)
    x[:, 1], x[:, 3] = 0.0, -7.5
    keywords = {"estimator": estimator, "transform": transform, "impl": impl}
    mi = mutual_information(x, **keywords)
    assert (mi[[1, 3]] == 0).all()
    assert (mi[:, [1, 3]] == 0).all()
    assert (mi[0, [0, 2, 4]] != 0).all()
    cross = mutual_information(x[:, :2], x[:, 2:], **keywords)
    assert (cross[1] == 0).all()
    assert (cross[:, 1] == 0).all()
    assert (cross[0, [0, 2]] != 0).all()


def test_column_of_signed_zeros_is_constant():
    x = gaussian(100, 2)
    x[:, 0] = torch.tensor([0.0, -0.0]).repeat(50)
    assert mutual_information(x)[0].tolist() == [0, 0]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("activation", [torch.Tensor.clone, torch.relu], ids=["continuous", "relu"])
def test_duplicates_have_the_highest_information_of_all_pairs(estimator, transform, activation):
    x = activation(correlated(512, 6))
    mi = mutual_information(torch.cat([x, x[:, :1]], dim=1), estimator=estimator, transform=transform)
    best = mi.fill_diagonal_(0).argmax()
    assert divmod(int(best), 7) == (0, 6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_continuous_duplicate_shares_as_much_as_a_neuron_with_itself(estimator):
    x = correlated(512, 3)
    mi = mutual_information(torch.cat([x, x], dim=1), estimator=estimator)
    torch.testing.assert_close(mi[:3, 3:].diag(), mi.diag()[:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_quantized_activations_gain_no_information(estimator, step):
    """But for chance, which adds (cells - 1)^2 / 2M nats to a table of counts."""
    x = correlated(1024, 12)
    weight = torch.linspace(0, 0.95, 12)
    truth = -0.5 * torch.log1p(-(weight[:, None] * weight).square())
    fine = mutual_information(x, estimator=estimator)
    if estimator != "renyi2":  # smoothing hides some of the information of continuous variables
        fine = fine.maximum(truth)
    rounded = (x / step).round() * step
    gain = off_diagonal(mutual_information(rounded, estimator=estimator) - fine)
    chance = (max(len(column.unique()) for column in rounded.T) - 1) ** 2 / (2 * 1024)
    assert gain.mean() < 0.8 * chance
    noise = off_diagonal(mutual_information(gaussian(1024, 12), estimator=estimator)).max()
    assert gain.max() < chance + noise


def test_quantized_activations_gain_nothing_with_adaptive():
    """It counts tables without their bias, here 0.045 nats."""
    x = correlated(1024, 12)
    fine, coarse = (mutual_information(v, estimator="adaptive") for v in (x, (2 * x).round()))
    assert off_diagonal(coarse - fine).mean() < 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_half_precision_activations_keep_their_information(estimator):
    x = correlated(1024, 12)
    fine = mutual_information(x, estimator=estimator)
    torch.testing.assert_close(mutual_information(x.bfloat16(), estimator=estimator), fine, rtol=0, atol=5e-3)
    torch.testing.assert_close(mutual_information(x.half(), estimator=estimator), fine, rtol=0, atol=5e-3)


def test_ranks_are_a_permutation_in_the_order_of_the_values():
    x = correlated(200, 6).round()
    ranks = transform_samples(x, "rank", seed=3).data
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(200, dtype=torch.int32).expand(6, 200))
    by_rank = x.T.gather(1, ranks.argsort(dim=1))
    assert (by_rank.diff(dim=1) >= 0).all()


def test_seed_affects_only_the_order_of_equal_values():
    continuous = correlated(200, 4)
    pairs = torch.cat([continuous[:100], continuous[:100]])  # too few equal values for an atom
    first, again, other = (mutual_information(pairs, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(mutual_information(continuous, seed=1), mutual_information(continuous, seed=2))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, 2**63, -(2**63)])
def test_any_integer_is_a_seed(seed):
    x = correlated(64, 3).relu()
    assert torch.equal(mutual_information(x, seed=seed), mutual_information(x, seed=seed % 2**32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ranks_equal_those_of_a_stable_sort_by_value_and_random_bits(dtype):
    x = correlated(3000, 6).relu().to(dtype)
    x[:, 5] = 0.0  # more equal values than 16 random bits can order
    bits = hash32(torch.arange(3000), torch.arange(6)[:, None], 1)
    if x.dtype.itemsize == 2:
        bits >>= 16
    order = bits.argsort(dim=1, stable=True)
    order = order.gather(1, x.T.gather(1, order).argsort(dim=1, stable=True))
    assert torch.equal(transform_samples(x, "rank", seed=1).data.argsort(dim=1), order)


def test_tie_breaking_bits_differ_within_a_column():
    assert len(hash32(torch.arange(2**20), torch.tensor(5), 7).unique()) == 2**20


def test_tie_breaking_bits_are_uniform_and_differ_between_columns_and_seeds():
    index, column = torch.arange(2**16), torch.arange(2)[:, None]
    bits = torch.cat([hash32(index, column, seed) for seed in (0, 1)])
    assert bits.min() >= 0
    assert bits.max() < 2**32
    uniform = bits / 2**32
    deciles = torch.stack([torch.histc(u, 10, min=0, max=1) for u in uniform])
    assert (deciles - 6553.6).abs().max() < 400  # five standard deviations
    correlation = torch.corrcoef(uniform.double()) - torch.eye(4)
    assert correlation.abs().max() < 0.02
