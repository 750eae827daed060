"""Every way of counting that is timed counts the same."""

import torch

from benchmarks import counts


def test_all_ways_agree():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(4, (3, 50), generator=generator)
    first, second = torch.triu_indices(3, 3, 1)
    found = {name: list(count(x, first, second, 4)) for name, count in counts.WAYS.items()}
    tile = found.pop("one-hot product")[0].view(3, 4, 3, 4)
    expected = torch.stack([tile[i, :, j] for i, j in zip(first, second, strict=True)]).double()
    for tensors in found.values():
        assert torch.equal(torch.cat([t.double().view(-1, 4, 4) for t in tensors]), expected)


def test_times_are_of_all_pairs():
    found = counts.measure(4, 50, 8, turns=1, some=2, seed=0)
    assert found["pairs_timed_pair_by_pair"] == 2
    assert all(found[name]["median"] > 0 for name in counts.WAYS)
