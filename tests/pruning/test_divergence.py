import copy

import pytest
import torch

from pruning.model.ffn import find_ffns
from pruning.observe.divergence import DenseOutputs

from tiny import outputs, tiny_model


@pytest.mark.parametrize("training", [False, True])
def test_the_divergence_of_a_model_from_itself_is_zero(model, windows, training):
    model.train(training)
    assert DenseOutputs(model, windows.split(7)).divergence() == pytest.approx(0, abs=1e-6)
    assert model.training == training


def test_the_divergence_is_the_mean_kl_in_nats(llama, windows):
    dense = DenseOutputs(llama, windows.split(8))
    p = outputs(llama, windows).double().softmax(-1)
    with torch.no_grad():
        find_ffns(llama)[1].output.weight.mul_(0.5)
    q = outputs(llama, windows).double().softmax(-1)
    assert dense.divergence() == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


def test_the_divergence_of_nan_outputs_is_infinite(llama, windows):
    dense = DenseOutputs(llama, [windows])
    with torch.no_grad():
        find_ffns(llama)[1].output.weight[0, 0] = float("nan")
    assert dense.divergence() == float("inf")


def test_the_divergence_of_an_encoder_is_the_mean_squared_change(windows):
    model = tiny_model("Bert")
    before = copy.deepcopy(model)
    dense = DenseOutputs(model, [windows])
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(0.5)
    expected = (outputs(model, windows) - outputs(before, windows)).square().mean()
    assert dense.divergence() == pytest.approx(float(expected), rel=1e-5)
