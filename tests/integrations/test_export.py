"""`torch.export` of a module that calls the operator, through a file and for other sizes."""

import pytest
import torch

from mikernels import mutual_information

from samples import correlated


class Redundancy(torch.nn.Module):
    """What each column shares most with a later one."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return mutual_information(x.relu() + x, **self.options).triu(1).amax(1)


def test_a_module_is_exported_saved_and_loaded(tmp_path):
    x, module = correlated(64, 6), Redundancy(estimator="adaptive")
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "module.pt2")
    loaded = torch.export.load(tmp_path / "module.pt2").module()
    assert torch.equal(loaded(x), module(x))


def test_sizes_are_dynamic_if_the_bandwidth_is_given():
    sizes = {"x": {0: torch.export.Dim("M", min=8, max=4096), 1: torch.export.Dim("N", min=2, max=512)}}
    module, other = Redundancy(bandwidth=0.5), correlated(100, 9)
    exported = torch.export.export(module, (correlated(64, 6),), dynamic_shapes=sizes)
    assert torch.equal(exported.module()(other), module(other))
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):  # the default depends on M
        torch.export.export(Redundancy(), (correlated(64, 6),), dynamic_shapes=sizes)


def test_vmap_loops_over_the_batch():
    x = torch.stack([correlated(64, 5, seed) for seed in range(3)])
    mapped = torch.vmap(mutual_information)(x)
    assert torch.equal(mapped, torch.stack([mutual_information(part) for part in x]))
