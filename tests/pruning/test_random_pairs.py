"""The paper's selection of random pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.choose.random_pairs import random_pairs

from tiny import symmetric


@given(n=st.integers(4, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_only_neurons_with_a_partner_above_the_threshold_are_dropped(n, seed):
    lonely = n // 2  # only pairs of the second half exceed the threshold
    mi = symmetric(n, seed) + 0.3
    mi[:lonely] = mi[:, :lonely] = 0.1
    dropped = random_pairs(mi, n // 4, threshold=0.2, seed=seed)
    assert len(dropped) == len(dropped.unique()) == n // 4
    assert (dropped >= lonely).all()


def test_one_neuron_of_each_group_of_copies_is_kept():
    mi = torch.block_diag(*[torch.ones(3, 3)] * 4)
    dropped = random_pairs(mi, 8, threshold=0.5, seed=0)
    kept = set(range(12)) - set(dropped.tolist())
    assert sorted(neuron // 3 for neuron in kept) == [0, 1, 2, 3]


def test_the_error_says_how_many_neurons_the_threshold_lets_drop():
    mi = torch.block_diag(*[torch.ones(3, 3)] * 4)
    with pytest.raises(ValueError, match=r"pairs above 0\.5 nats to drop 9 of 12 neurons, got pairs for 8"):
        random_pairs(mi, 9, threshold=0.5, seed=0)


def test_one_neuron_of_each_cluster_of_copies_is_kept():
    """All twelve are copies; since pairs across clusters do not count, each cluster keeps one."""
    cluster = torch.arange(12) % 3
    dropped = random_pairs(torch.ones(12, 12), 9, threshold=0.5, seed=0, cluster=cluster)
    kept = set(range(12)) - set(dropped.tolist())
    assert sorted(neuron % 3 for neuron in kept) == [0, 1, 2]


def test_the_error_says_how_many_neurons_the_clusters_let_drop():
    with pytest.raises(
        ValueError, match=r"pairs within 3 clusters above 0\.5 nats to drop 10 of 12 neurons, got pairs for 9"
    ):
        random_pairs(torch.ones(12, 12), 10, threshold=0.5, seed=0, cluster=torch.arange(12) % 3)


@given(n=st.integers(8, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_one_cluster_gives_the_same_selection_as_none(n, seed):
    mi = symmetric(n, seed)
    one = torch.zeros(n, dtype=torch.int64)
    plain, clustered = (
        random_pairs(mi, n // 4, threshold=0.2, seed=seed, cluster=cluster) for cluster in (None, one)
    )
    assert torch.equal(plain, clustered)


def test_the_selection_depends_only_on_the_seed():
    mi = symmetric(50, 0)
    runs = [random_pairs(mi, 10, threshold=0.3, seed=seed).tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
