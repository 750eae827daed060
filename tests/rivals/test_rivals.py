"""Pruning by other packages, on tiny models."""

import pytest
import torch

from benchmarks.quality.calibrated import Calibrated
from benchmarks.quality.methods import METHODS
from benchmarks.quality.rivals import RIVALS
from pruning.model.ffn import find_ffns

from tiny import VOCABULARY, outputs, tiny_model

WINDOWS = torch.randint(VOCABULARY, (6, 32), generator=torch.Generator().manual_seed(0))
N_KEEP = 27


@pytest.fixture(params=RIVALS)
def rival(request):
    rival = RIVALS[request.param]
    assert rival.missing() is None
    return rival


@pytest.mark.parametrize("family", ["Llama", "Bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_ffn_keeps_as_many_neurons(rival, family, dtype):
    model, dense = (tiny_model(family).to(dtype) for _ in range(2))
    if reason := rival.obstacle(model):
        with pytest.raises(ValueError, match=reason):
            rival.prune(model, WINDOWS, N_KEEP)
        return
    kept = rival.prune(model, WINDOWS, N_KEEP)
    assert model.config.intermediate_size == N_KEEP
    assert {name: p.dtype for name, p in model.named_parameters()} == {
        name: p.dtype for name, p in dense.named_parameters()
    }
    for indices, before, after in zip(kept, find_ffns(dense), find_ffns(model), strict=True):
        assert len(indices) == after.width == N_KEEP
        assert (indices.diff() > 0).all()
        for old, new in zip(before.inputs, after.inputs, strict=True):
            assert torch.equal(new.weight, old.weight[indices])
            assert old.bias is None or torch.equal(new.bias, old.bias[indices])
    assert outputs(model, WINDOWS).isfinite().all()


def test_parameters_outside_the_ffns_are_untouched(rival):
    model, dense = tiny_model("Llama"), tiny_model("Llama")
    rival.prune(model, WINDOWS, N_KEEP)
    before = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        if ".mlp." not in name:
            assert torch.equal(parameter, before[name])
            assert parameter.grad is None
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_osscar_is_no_worse_than_cutting_its_neurons_out():
    rival = RIVALS["fmchisel-osscar"]
    model, cut, dense = (tiny_model("Llama", num_hidden_layers=1) for _ in range(3))
    (kept,) = rival.prune(model, WINDOWS, N_KEEP)
    dropped = torch.ones(find_ffns(dense)[0].width, dtype=torch.bool).index_fill(0, kept, False)
    with torch.no_grad():
        find_ffns(cut)[0].output.weight[:, dropped] = 0

    def error(other):
        states = [m.base_model(input_ids=WINDOWS).last_hidden_state for m in (other, dense)]
        return (states[0] - states[1]).square().mean()

    assert error(model) < error(cut)


@pytest.mark.parametrize("n_keep", [0, 40])
def test_widths_out_of_range_are_refused(rival, n_keep):
    with pytest.raises(ValueError, match="n_keep: expected 1 to 39"):
        rival.prune(tiny_model("Llama"), WINDOWS, n_keep)


@pytest.mark.parametrize("name", RIVALS)
def test_refitting_keeps_the_neurons_of_the_rival(name):
    calibrated = Calibrated(tiny_model("Llama"), WINDOWS)
    models = [calibrated.prune(METHODS[method], 0.25)[0] for method in (name, f"{name}, lstsq")]
    for first, second in zip(*map(find_ffns, models), strict=True):
        assert torch.equal(first.inputs[0].weight, second.inputs[0].weight)
        assert not torch.equal(first.output.weight, second.output.weight)
