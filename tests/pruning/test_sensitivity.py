import copy

import pytest
import torch

from pruning.choose.evidence import measure
from pruning.choose.sensitivity import by_kl, by_mi, with_divergence
from pruning.model.families import find_ffns
from pruning.observe.capture import capture

from tiny import tiny_model


def evidence_of(model, windows):
    ffns = find_ffns(model)
    statistics = capture(model, ffns, [windows], sample_size=256)
    return [measure(f, s, estimator="grid", nodes=16, seed=0) for f, s in zip(ffns, statistics, strict=True)]


def test_kl_leaves_the_model_as_it_was(model, windows):
    evidence = evidence_of(model, windows)
    before = copy.deepcopy(model.state_dict())
    values = by_kl(with_divergence(model, find_ffns(model), evidence, [windows[:4]]))
    assert min(values) > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("family", ["Llama", "Bert"])
def test_kl_of_a_layer_that_adds_nothing_is_the_smallest(windows, family):
    model = tiny_model(family)
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(1e-3)
    evidence = evidence_of(model, windows)
    values = by_kl(with_divergence(model, find_ffns(model), evidence, [windows[:4]]))
    assert values[1] < 0.2 * min(values[0], values[2])


def test_a_budget_by_kl_that_nobody_measured_is_refused(llama, windows):
    with pytest.raises(ValueError, match="expected the divergence of 3 layers, got 0"):
        by_kl(evidence_of(llama, windows))


def test_mi_ranks_layers_by_their_median_over_the_null(windows):
    model = tiny_model("Llama")
    with torch.no_grad():  # neurons of the last layer that are nearly one and the same
        for linear in find_ffns(model)[2].inputs:
            linear.weight[:] = linear.weight[:1] + 0.1 * torch.randn_like(linear.weight)
    values = by_mi(evidence_of(model, windows), estimator="grid", nodes=16)
    assert values[2] == max(values)
    assert min(values) > 0
