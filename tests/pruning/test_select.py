import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.choose import criteria as select
from pruning.model.families import find_ffns
from pruning.observe.capture import Statistics

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


def least_squares_error(z, y, kept):
    """Mean squared error of y [T, d] on the kept columns of z [T, N]; both centred."""
    fit = torch.linalg.lstsq(z[:, kept], y).solution
    return float((y - z[:, kept] @ fit).square().sum() / len(z))


@pytest.mark.parametrize("seed", range(3))
def test_conditional_mi_drops_what_least_squares_misses_least(seed, monkeypatch):
    """Against a search that solves every regression anew; more neurons than one block."""
    monkeypatch.setattr(select, "RIDGE", 1e-6)
    monkeypatch.setattr(select, "BLOCK", 4)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(400, 14, generator=generator) @ torch.randn(14, 14, generator=generator)
    z = (z - z.mean(0)).double()
    weight = torch.randn(5, 14, generator=generator).double()
    y = z @ weight.T
    order, damage = select.conditional_mi(z.T @ z / len(z), weight)
    kept = list(range(14))
    for step in range(10):
        errors = {d: least_squares_error(z, y, [k for k in kept if k != d]) for d in kept}
        goes = min(errors, key=errors.get)
        assert int(order[step]) == goes
        share = errors[goes] / float(y.square().sum() / len(z))
        assert float(damage[step + 1]) == pytest.approx(share, rel=1e-2, abs=1e-5)
        kept.remove(goes)


@given(n=st.integers(2, 40), rank=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_conditional_mi_orders_all_neurons_whatever_their_rank(n, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(50, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
    z[:, 0] = 1.0  # constant
    z[:, -1] *= 1e4  # massive
    order, damage = select.conditional_mi(statistics_of(z).covariance, torch.randn(3, n, generator=generator))
    assert sorted(order.tolist()) == list(range(n))
    assert damage[0] == 0
    assert (damage.diff() >= 0).all()
    assert float(damage[-1]) == pytest.approx(1.0, abs=0.02)


def test_constant_neurons_and_one_of_two_copies_go_first():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 6, generator=generator)
    z[:, 1], z[:, 4] = 3.0, z[:, 2]
    order, damage = select.conditional_mi(statistics_of(z).covariance, torch.ones(4, 6))
    assert int(order[0]) == 1
    assert int(order[1]) in (2, 4)
    assert float(damage[2]) < 0.05 < float(damage[3])


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


def test_random_pairs_leaves_one_of_each_cluster_of_copies():
    """All twelve are copies; that pairs across clusters do not count saves one in each."""
    cluster = torch.arange(12) % 3
    dropped = select.random_pairs(torch.ones(12, 12), 9, threshold=0.5, seed=0, cluster=cluster)
    kept = set(range(12)) - set(dropped.tolist())
    assert sorted(neuron % 3 for neuron in kept) == [0, 1, 2]


def test_random_pairs_says_how_many_the_clusters_allow():
    with pytest.raises(
        ValueError, match=r"lets 10 of 12 .* above 0\.5 nats there are pairs within 3 clusters for 9"
    ):
        select.random_pairs(torch.ones(12, 12), 10, threshold=0.5, seed=0, cluster=torch.arange(12) % 3)


@given(n=st.integers(8, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_one_cluster_is_no_clusters(n, seed):
    mi = symmetric(n, seed)
    one = torch.zeros(n, dtype=torch.int64)
    plain, clustered = (
        select.random_pairs(mi, n // 4, threshold=0.2, seed=seed, cluster=cluster) for cluster in (None, one)
    )
    assert torch.equal(plain, clustered)


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
