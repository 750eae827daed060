import pytest
import torch

from pruning.choose.clusters import cluster_neurons


def groups(n_groups, size, *, seed, n_samples=500):
    """Activations `[M, n_groups * size]`: each group is a random factor times +1 or -1, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(n_samples, n_groups, generator=generator).repeat_interleave(size, 1)
    signs = torch.randint(2, (n_groups * size,), generator=generator) * 2 - 1
    return factors * signs + 0.5 * torch.randn(factors.shape, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_neurons_that_follow_the_same_factor_are_one_cluster(seed):
    found = cluster_neurons(groups(4, 6, seed=seed), 4)
    assert found.tolist() == torch.arange(4).repeat_interleave(6).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clusters_are_invariant_under_monotone_maps(dtype):
    x = torch.randint(-60, 60, (400, 24), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = cluster_neurons(x, 5)
    assert torch.equal(cluster_neurons(2 * x + 8, 5), expected)
    assert torch.equal(cluster_neurons((x / 16).exp() if dtype == torch.float32 else x / 16, 5), expected)


def test_clusters_are_invariant_under_mirroring():
    x = groups(4, 6, seed=1)
    flipped = x * torch.tensor([1, -1]).repeat(12)
    assert torch.equal(cluster_neurons(flipped, 4), cluster_neurons(x, 4))


@pytest.mark.parametrize("seed", range(5))
def test_monotone_copies_share_a_cluster(seed):
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(seed))
    found = cluster_neurons(torch.cat([x, x.flip(1) ** 3], dim=1), 7)
    assert torch.equal(found[:20], found[20:].flip(0))


def test_clusters_contain_more_correlation_than_random_groups():
    """Neurons of a random network, without planted groups."""
    generator = torch.Generator().manual_seed(0)
    x = torch.relu(torch.randn(2000, 16, generator=generator) @ torch.randn(16, 64, generator=generator))
    correlation = x.T.corrcoef().square().fill_diagonal_(0)

    def within(cluster):
        return float(correlation[cluster[:, None] == cluster].mean())

    found = cluster_neurons(x, 4)
    assert within(found) > 1.3 * within(found[torch.randperm(64, generator=generator)])


def test_constant_neurons_are_in_the_first_cluster():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    x[:, 5:] = 2.0
    assert cluster_neurons(x, 2)[5:].tolist() == [0, 0, 0]


def test_with_as_many_clusters_as_neurons_each_has_its_own():
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    assert cluster_neurons(x, 12).tolist() == list(range(12))
