"""Saliencies and the orders made from them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.choose import scores
from pruning.model.ffn import find_ffns

from tiny import statistics_of, symmetric, tiny_model


@given(n=st.integers(2, 30), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_orders_are_permutations(n, seed):
    saliency = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    for order in (
        scores.ascending(saliency),
        scores.random_order(n, seed=seed),
        scores.redundancy_order(symmetric(n, seed), saliency),
    ):
        assert sorted(order.tolist()) == list(range(n))


def test_ties_are_broken_by_index():
    assert scores.ascending(torch.tensor([1.0, 0.0, 1.0, 0.0])).tolist() == [1, 3, 0, 2]
    assert scores.redundancy_order(torch.zeros(4, 4), torch.ones(4)).tolist() == [0, 1, 2, 3]


def test_without_shared_information_the_redundancy_order_follows_the_saliency():
    saliency = torch.rand(20, generator=torch.Generator().manual_seed(0))
    order = scores.redundancy_order(torch.zeros(20, 20), saliency)
    assert torch.equal(order, scores.ascending(saliency))


def test_one_of_two_copies_is_dropped_first_and_the_other_one_by_its_own_saliency():
    mi = torch.zeros(4, 4)
    mi[0, 1] = mi[1, 0] = 3.0
    # Neurons 0 and 1 are copies and the most salient: one costs nothing, the other is dropped last.
    assert scores.redundancy_order(mi, torch.tensor([10.0, 10.1, 1.0, 2.0])).tolist() == [0, 2, 3, 1]


@given(n=st.integers(3, 25), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_redundancy_order_is_greedy(n, seed):
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
    assert scores.redundancy_order(mi, saliency).tolist() == expected


def test_saliencies_equal_their_formulas():
    ffn = find_ffns(tiny_model("Llama", width=20))[0]
    torch.manual_seed(0)
    z = torch.randn(300, 20) * torch.arange(1, 21) + 1
    statistics = statistics_of(z)
    down, (gate, up) = ffn.output.weight.detach(), [linear.weight.detach() for linear in ffn.inputs]
    for i in range(20):
        expected = torch.cat([gate[i], up[i], down[:, i]]).norm()
        torch.testing.assert_close(scores.magnitude(ffn)[i], expected)
        expected = (down[:, i].abs() * z[:, i].square().mean().sqrt()).mean().double()
        torch.testing.assert_close(scores.wanda(ffn, statistics)[i], expected, rtol=1e-5, atol=0)
        expected = (down[:, i].square().sum() * z[:, i].var(correction=0)).double()
        torch.testing.assert_close(scores.fluctuation(ffn, statistics)[i], expected, rtol=1e-5, atol=0)
