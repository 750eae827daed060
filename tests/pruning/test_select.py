import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import select
from pruning.capture import Statistics
from pruning.families import find_ffns

from tiny import tiny_model


def symmetric(n, seed):
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    return (a + a.T) / 2


def statistics_of(z):
    return Statistics("layer", z, len(z), z.double().mean(0), z.T.cov(correction=0))


@given(n=st.integers(2, 30), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_orders_are_permutations(n, seed):
    saliency = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    for order in (
        select.ascending(saliency),
        select.random_order(n, seed=seed),
        select.redundancy_saliency(symmetric(n, seed), saliency),
    ):
        assert sorted(order.tolist()) == list(range(n))


def test_equal_saliency_goes_by_index():
    assert select.ascending(torch.tensor([1.0, 0.0, 1.0, 0.0])).tolist() == [1, 3, 0, 2]
    assert select.redundancy_saliency(torch.zeros(4, 4), torch.ones(4)).tolist() == [0, 1, 2, 3]


def test_without_information_redundancy_saliency_is_saliency():
    saliency = torch.rand(20, generator=torch.Generator().manual_seed(0))
    order = select.redundancy_saliency(torch.zeros(20, 20), saliency)
    assert torch.equal(order, select.ascending(saliency))


def test_of_two_copies_one_goes_first_and_the_other_is_then_judged_alone():
    mi = torch.zeros(4, 4)
    mi[0, 1] = mi[1, 0] = 3.0
    # Neurons 0 and 1 are copies and the most salient: one is free to go, the other is the last.
    assert select.redundancy_saliency(mi, torch.tensor([10.0, 10.1, 1.0, 2.0])).tolist() == [0, 2, 3, 1]


@given(n=st.integers(3, 25), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_redundancy_saliency_is_greedy(n, seed):
    mi, saliency = symmetric(n, seed), torch.rand(n, generator=torch.Generator().manual_seed(seed + 1))
    kept = list(range(n))
    expected = []
    while kept:
        score = {
            i: saliency[i].double()
            * torch.exp(
                -2 * max((mi[i, j].double() for j in kept if j != i), default=0.0 * mi[0, 0].double())
            )
            for i in kept
        }
        expected.append(min(kept, key=score.__getitem__))
        kept.remove(expected[-1])
    assert select.redundancy_saliency(mi, saliency).tolist() == expected


@given(n=st.integers(4, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_random_pairs_drops_only_neurons_with_a_partner_above_the_threshold(n, seed):
    lonely = n // 2  # the first half is in no pair above the threshold, every pair of the others is
    mi = symmetric(n, seed) + 0.3
    mi[:lonely] = mi[:, :lonely] = 0.1
    dropped = select.random_pairs(mi, n // 4, threshold=0.2, seed=seed)
    assert len(dropped) == len(dropped.unique()) == n // 4
    assert (dropped >= lonely).all()


def test_random_pairs_leaves_one_of_each_group_of_copies():
    mi = torch.block_diag(*[torch.ones(3, 3)] * 4)
    dropped = select.random_pairs(mi, 8, threshold=0.5, seed=0)
    kept = set(range(12)) - set(dropped.tolist())
    assert sorted(neuron // 3 for neuron in kept) == [0, 1, 2, 3]


def test_random_pairs_says_how_many_a_threshold_allows():
    mi = torch.block_diag(*[torch.ones(3, 3)] * 4)
    with pytest.raises(ValueError, match=r"lets 9 of 12 neurons go; above 0\.5 nats there are pairs for 8"):
        select.random_pairs(mi, 9, threshold=0.5, seed=0)


def test_random_pairs_depends_on_the_seed_and_on_nothing_else():
    mi = symmetric(50, 0)
    runs = [select.random_pairs(mi, 10, threshold=0.3, seed=seed).tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_baselines_are_their_formulas():
    ffn = find_ffns(tiny_model("Llama", width=12))[0]
    torch.manual_seed(0)
    z = torch.randn(300, 12) * torch.arange(1, 13) + 1
    statistics = statistics_of(z)
    down, (gate, up) = ffn.output.weight.detach(), [linear.weight.detach() for linear in ffn.inputs]
    for i in range(12):
        expected = torch.cat([gate[i], up[i], down[:, i]]).norm()
        torch.testing.assert_close(select.magnitude(ffn)[i], expected)
        expected = (down[:, i].abs() * z[:, i].square().mean().sqrt()).mean().double()
        torch.testing.assert_close(select.wanda(ffn, statistics)[i], expected, rtol=1e-5, atol=0)
        expected = (down[:, i].square().sum() * z[:, i].var(correction=0)).double()
        torch.testing.assert_close(select.fluctuation(ffn, statistics)[i], expected, rtol=1e-5, atol=0)
