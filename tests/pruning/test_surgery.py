import copy

import pytest
import torch

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.model.size import count_parameters, weight_bytes
from pruning.model.surgery import Cut, Solution, prune_ffns, update_config

from tiny import outputs, tiny_model


def cut(model, keeps):
    ffns = find_ffns(model)
    for ffn, keep in zip(ffns, keeps, strict=True):
        weight, bias = ffn.output.weight.detach()[:, keep], ffn.output.bias
        prune_ffns(
            [Cut(ffn, keep, Solution(weight.double(), None if bias is None else bias.detach().double()))]
        )
    update_config(model, ffns)


def test_keeping_all_neurons_is_the_identity_bit_for_bit(model, windows):
    dense = outputs(model, windows)
    cut(model, [torch.arange(40)] * 3)
    assert torch.equal(outputs(model, windows), dense)


def test_each_layer_keeps_its_own_neurons(model):
    dense = copy.deepcopy(model)
    keeps = [torch.arange(0, 20), torch.arange(20, 40), torch.arange(0, 40, 2)]
    cut(model, keeps)
    for before, after, keep in zip(find_ffns(dense), find_ffns(model), keeps, strict=True):
        assert after.width == after.output.in_features == 20
        assert torch.equal(after.output.weight, before.output.weight[:, keep])
        for old, new in zip(before.inputs, after.inputs, strict=True):
            assert new.out_features == 20
            assert torch.equal(new.weight, old.weight[keep])
            assert old.bias is None or torch.equal(new.bias, old.bias[keep])


@pytest.mark.parametrize("repair", ["none", "lstsq"])
def test_the_config_and_the_parameter_count_describe_the_pruned_model(model, windows, repair):
    before, matrices = count_parameters(model), len(find_ffns(model)[0].inputs) + 1
    biases = sum(linear.bias is not None for linear in find_ffns(model)[0].inputs)
    prune(model, None, calibration=windows, ratio=0.25, repair=repair, multiple_of=2)
    assert model.config.intermediate_size == 30
    assert before - count_parameters(model) == 3 * 10 * (16 * matrices + biases)
    assert weight_bytes(model) == 4 * count_parameters(model)


def test_an_added_bias_is_stored_by_the_switch_of_its_class(llama, windows):
    prune(llama, None, calibration=windows, ratio=0.25, repair="bias", multiple_of=2)
    assert llama.config.mlp_bias
    for ffn in find_ffns(llama):
        assert ffn.output.bias.abs().sum() > 0
        assert all(torch.equal(linear.bias, torch.zeros(30)) for linear in ffn.inputs)
    fresh = type(llama)(llama.config)
    fresh.load_state_dict(llama.state_dict())
    assert torch.equal(outputs(fresh.eval(), windows), outputs(llama, windows))


def test_dtype_and_requires_grad_are_kept(windows):
    model = tiny_model("Llama").to(torch.bfloat16).requires_grad_(False)
    prune(model, None, calibration=windows, ratio=0.25, multiple_of=2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
