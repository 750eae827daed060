from dataclasses import replace

import pytest
import torch

from pruning import Settings
from pruning.choose.evidence import gather_evidence
from pruning.choose.sensitivity import by_kl, by_mi, halved_divergences
from pruning.model.ffn import find_ffns

from tiny import assert_unchanged, state_of, tiny_model


def evidence_of(model, windows):
    return list(gather_evidence(model, find_ffns(model), [windows], Settings(sample_size=256)))


def halved(model, evidence, ids):
    """The sensitivity by KL on windows `[n, L]`."""
    measured = halved_divergences(model, find_ffns(model), evidence, [ids])
    return by_kl([replace(e, divergence=d) for e, d in zip(evidence, measured, strict=True)])


def test_measuring_the_kl_divergence_leaves_the_model_unchanged(model, windows):
    evidence = evidence_of(model, windows)
    before = state_of(model)
    values = halved(model, evidence, windows[:4])
    assert min(values) > 0
    assert_unchanged(model, before)


@pytest.mark.parametrize("family", ["Llama", "Bert"])
def test_the_kl_divergence_is_smallest_for_a_layer_that_adds_almost_nothing(windows, family):
    model = tiny_model(family)
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(1e-3)
    evidence = evidence_of(model, windows)
    values = halved(model, evidence, windows[:4])
    assert values[1] < 0.2 * min(values[0], values[2])


def test_a_kl_budget_without_measured_divergence_is_an_error(llama, windows):
    with pytest.raises(ValueError, match="expected the divergence of 3 layers, got 0"):
        by_kl(evidence_of(llama, windows))


def test_a_layer_of_redundant_neurons_has_the_highest_mi_sensitivity(windows):
    model = tiny_model("Llama")
    with torch.no_grad():  # makes the neurons of the last layer nearly equal
        for linear in find_ffns(model)[2].inputs:
            linear.weight[:] = linear.weight[:1] + 0.1 * torch.randn_like(linear.weight)
    values = by_mi(evidence_of(model, windows), estimator="grid", nodes=16)
    assert values[2] == max(values)
    assert min(values) > 0
