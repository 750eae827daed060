"""Pruning does not depend on torch's global state, and leaves it and the model's modes as they were."""

import warnings

import pytest
import torch

from pruning import load_model, prune
from pruning.choose.elimination import conditional_mi
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import find_ffns
from pruning.model.snapshot import take_snapshot
from pruning.report.quality import hidden_states, perplexity
from pruning.report.save import save_pruned
from pruning.report.speed import paired_speed

from global_states import STATES, state
from tiny import tiny_model, tiny_tokenizer

OPTIONS = {
    "refined": {"refine": True},
    "lstsq": {"repair": "lstsq", "budget": "kl"},
    "paper": {"criterion": "random-pairs", "threshold": "null:0.9", "clusters": 2, "repair": "none"},
}


def windows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 250, (24, 16), generator=generator, device="cpu")


def pruned(options: dict, family: str = "Llama"):
    model = tiny_model(family)
    ids = windows()
    return model, ids, {"calibration": ids, "ratio": 0.3, "multiple_of": 4, "sample_size": 256} | options


@pytest.fixture(scope="module")
def expected():
    results = {}
    for name, options in OPTIONS.items():
        model, ids, settings = pruned(options)
        prune(model, None, **settings)
        results[name] = (model.state_dict(), perplexity(model, [ids]).nll, hidden_states(model, [ids]))
    return results


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", STATES)
def test_no_state_changes_the_pruned_model_or_its_evaluation(name, options, expected):
    model, ids, settings = pruned(OPTIONS[options])
    ffns = find_ffns(model)
    dense = take_snapshot(ffns)
    with STATES[name]():
        before = state()
        prune(model, None, **settings)
        nll, hidden = perplexity(model, [ids]).nll, hidden_states(model, [ids])
        paired_speed(model, ffns, dense, ids)
        assert state() == before
    weights, expected_nll, expected_hidden = expected[options]
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    assert torch.equal(nll, expected_nll)
    assert torch.equal(hidden, expected_hidden)


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("options", OPTIONS)
def test_a_model_pruned_in_inference_mode_can_be_trained(options):
    model, ids, settings = pruned(OPTIONS[options])
    with torch.inference_mode():
        prune(model, None, **settings)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a pruned model, and its weights."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    model, _, settings = pruned({"repair": "lstsq"})
    with warnings.catch_warnings(action="ignore"):
        report = prune(model, None, **settings)
    save_pruned(model, tiny_tokenizer(), report, folder)
    return folder, model.state_dict()


@pytest.mark.parametrize("name", STATES)
def test_a_model_is_loaded_in_any_state(name, saved):
    folder, weights = saved
    with STATES[name]():
        before = state()
        model, _ = load_model(str(folder), dtype=torch.float32, device="cpu")
        assert state() == before
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    model(input_ids=windows()).logits.sum().backward()


@pytest.mark.filterwarnings("ignore:calibration")
@pytest.mark.parametrize("options", OPTIONS)
def test_each_module_returns_to_its_own_mode(options):
    model, _, settings = pruned(OPTIONS[options])
    model.train()
    find_ffns(model)[0].block.eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    prune(model, None, **settings)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_modes_return_after_an_error_and_where_a_class_overrides_train():
    class Counting(torch.nn.Linear):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    model = torch.nn.Sequential(Counting(2, 2), torch.nn.Dropout())
    model.train()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match="stop"), evaluation_mode(model):
        raise ValueError("stop")
    assert [module.training for module in model.modules()] == [True, True, False]
    assert model[0].calls == 5  # one to start with, and two each time


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
@pytest.mark.parametrize("noise", [0.0, 2.0**-11])
def test_conditional_mi_of_covariances_of_low_rank_takes_no_root_of_a_negative(rank, scale, noise):
    """`noise` is what rounding to the 11 bits of TF32 does to a covariance."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, rank, generator=generator) @ torch.randn(rank, 96, generator=generator) * scale
    covariance = z.t() @ z / len(z)
    rounding = torch.randn(96, 96, generator=generator) * noise
    order, damage = conditional_mi(
        covariance * (1 + rounding + rounding.t()), torch.randn(8, 96, generator=generator)
    )
    assert order.sort().values.equal(torch.arange(96))
    assert damage.isfinite().all()
    assert (damage.diff() >= 0).all()


def test_conditional_mi_survives_an_inverse_that_rounding_made_indefinite(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 3, generator=generator) @ torch.randn(3, 96, generator=generator)
    error = 0.05 * torch.randn(96, 96, generator=generator)
    inverse = torch.cholesky_inverse
    monkeypatch.setattr(
        torch, "cholesky_inverse", lambda factor, out: out.copy_(inverse(factor) + error + error.t())
    )
    order, damage = conditional_mi(z.t() @ z / len(z), torch.randn(8, 96, generator=generator))
    assert order.sort().values.equal(torch.arange(96))
    assert damage.isfinite().all()
