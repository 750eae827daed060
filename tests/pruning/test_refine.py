"""Refining one FFN toward a target."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from pruning.model.ffn import find_ffns
from pruning.model.surgery import Plan, Solution, prune_ffns
from pruning.repair.refine import held_back, neurons, refine_ffn
from pruning.repair.sequential import Examples, fit

from tiny import FAMILIES, tiny_model

KEEP = torch.arange(0, 40, 2)
HELD = 200  # of 2,000 tokens


def problem(family, *, dtype=torch.float32, tokens=2000):
    """An FFN with half of its neurons and the least-squares output projection, and its dense outputs as the target."""
    torch.manual_seed(1)
    ffn = find_ffns(tiny_model(family).to(dtype))[0]
    inputs = torch.randn(tokens, 16).to(dtype)
    with torch.no_grad():
        z = neurons(ffn, inputs).float()
        target = run(ffn, inputs)
        kept = torch.cat([z[:, KEEP], torch.ones(tokens, 1)], 1)
        solution = torch.linalg.lstsq(kept, target).solution.t()
    prune_ffns([Plan(ffn, KEEP, Solution(solution[:, :-1], solution[:, -1]))])
    return ffn, inputs, target, torch.rand(tokens) + 0.5


@torch.no_grad()
def run(ffn, inputs):
    return torch.nn.functional.linear(neurons(ffn, inputs), ffn.output.weight, ffn.output.bias).float()


def error(ffn, inputs, target, weights):
    return float((weights * (run(ffn, inputs) - target).square().sum(1)).sum())


def state(ffn):
    return [p.detach().clone() for part in ffn.projections for p in part.owners[0].parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_those_that_the_model_computes(family):
    model = tiny_model(family)
    ffn = find_ffns(model)[0]
    seen = {}
    ffn.inputs[0].owners[0].register_forward_pre_hook(lambda _module, args: seen.setdefault("read", args[0]))
    ffn.output.owners[0].register_forward_pre_hook(lambda _module, args: seen.setdefault("neurons", args[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(12)[None])
        torch.testing.assert_close(neurons(ffn, seen["read"]), seen["neurons"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in FAMILIES),
        *((family, dtype) for family in ("Llama", "Bert") for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_the_error_falls_below_that_of_least_squares(family, dtype):
    ffn, *data = problem(family, dtype=dtype)
    before = error(ffn, *data)
    refine_ffn(ffn, *data, n_held=HELD, passes=50, seed=0)
    assert error(ffn, *data) < 0.9 * before
    assert {p.dtype for p in state(ffn)} == {dtype}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_is_trained(family):
    ffn, *data = problem(family)
    before = state(ffn)
    refine_ffn(ffn, *data, n_held=HELD, passes=10, seed=0)
    assert not any(torch.equal(a, b) for a, b in zip(before, state(ffn), strict=True))


def test_no_bias_is_added():
    ffn, *data = problem("Llama")
    ffn.output.owners[0].register_parameter("bias", None)
    before = error(ffn, *data)
    refine_ffn(ffn, *data, n_held=HELD, passes=25, seed=0)
    assert ffn.output.bias is None
    assert error(ffn, *data) < before


@pytest.mark.parametrize("family", ["Llama", "Bert"])
def test_equal_seeds_give_equal_weights(family):
    results = []
    given, *data = problem(family)
    for seed in (3, 3, 4):
        ffn = deepcopy(given)
        refine_ffn(ffn, *data, n_held=HELD, passes=10, seed=seed)
        results.append(state(ffn))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_the_data_and_the_random_state_are_unchanged():
    ffn, *data = problem("Llama")
    random = torch.get_rng_state()
    given = [tensor.clone() for tensor in data]
    refine_ffn(ffn, *data, n_held=HELD, passes=2, seed=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(data, given, strict=True))
    assert all(p.grad is None for part in ffn.projections for p in part.owners[0].parameters())
    assert not ffn.output.owners[0]._forward_pre_hooks


def test_tensors_recorded_in_inference_mode_are_accepted():
    ffn, *data = problem("Llama", dtype=torch.bfloat16)
    before = error(ffn, *data)
    with torch.inference_mode():
        recorded = [tensor.bfloat16().clone() for tensor in data]
        refine_ffn(ffn, *recorded, n_held=HELD, passes=10, seed=0)
    assert error(ffn, *data) < before


@pytest.mark.parametrize("family", ["Llama", "Bert"])
def test_a_result_that_held_back_tokens_contradict_is_discarded(family):
    ffn, inputs, _, weights = problem(family)
    target = run(ffn, inputs)  # already reached on the held-back tenth
    target[: int(0.9 * len(target))] *= -1
    before = state(ffn)
    assert refine_ffn(ffn, inputs, target, weights, n_held=HELD, passes=15, seed=0) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state(ffn), strict=True))


@pytest.mark.parametrize("tokens", [2, 30, 1200])
def test_the_error_on_held_back_tokens_never_rises(tokens):
    ffn, *data = problem("Llama")
    data = [tensor[:tokens] for tensor in data]
    held = [tensor[-max(1, tokens // 10) :] for tensor in data]
    before = error(ffn, *held)
    refined = refine_ffn(ffn, *data, n_held=max(1, tokens // 10), passes=5, seed=0)
    assert refined == pytest.approx(error(ffn, *held) / before, rel=1e-4)
    assert refined <= 1


@pytest.mark.parametrize("sizes", [[150], [50, 50, 50], [1, 99, 50]])
def test_the_closed_form_has_not_seen_the_tokens_that_are_held_back(sizes):
    """Otherwise its error on them would be that of a fit to them, and refining could rarely be better. Which tokens are
    held back does not depend on the batches."""
    ffn, fitted = find_ffns(tiny_model("Llama"))[0], []
    generator = torch.Generator().manual_seed(2)
    z, read, wanted = (torch.randn(150, n, generator=generator) for n in (40, 16, 16))
    held = torch.arange(150) % 15 == 14
    for change in (0.0, 10.0):
        target = wanted + change * held[:, None]
        examples = Examples(ffn, refined=150)
        for part in zip(*(t.split(sizes) for t in (z, read, target, torch.ones(150))), strict=True):
            examples.add(SimpleNamespace(z=part[0], read=part[1]), part[2], part[3])
        examples.complete()
        fitted.append(fit(ffn, KEEP, examples).weight)
    assert torch.equal(*fitted)
    *tokens, n_held = examples.take()
    order = torch.cat([torch.arange(150)[~held], torch.arange(150)[held]])
    assert n_held == 10
    for found, expected in zip(tokens, (read, target, torch.ones(150)), strict=True):
        assert torch.equal(found, expected[order])


@pytest.mark.parametrize("n_tokens", [2, 9, 10, 19, 384, 28_672, 57_345])
def test_about_a_tenth_of_the_tokens_is_held_back_in_runs_over_all_of_them(n_tokens):
    held = held_back(n_tokens)
    assert 1 <= held.sum() <= max(1, n_tokens / 8)
    assert held.sum() >= 0.07 * n_tokens - 1
    ends = held & ~torch.cat([held[1:], held.new_zeros(1)])
    assert ends.sum() <= 11
    if n_tokens > 100:
        assert all(part.any() for part in held.tensor_split(9))


@pytest.mark.parametrize("which", ["inputs", "target", "weights"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(which, value):
    ffn, inputs, target, weights = problem("Llama")
    data = {"inputs": inputs, "target": target, "weights": weights}
    data[which] = data[which].clone()
    data[which][3] = value
    before = state(ffn)
    with pytest.raises(ValueError, match=rf"expected finite {which}, got \d+ NaN or infinite"):
        refine_ffn(ffn, **data, n_held=HELD, passes=2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, state(ffn), strict=True))


def test_arguments_that_do_not_fit_are_an_error():
    ffn, inputs, target, weights = problem("Llama")
    with pytest.raises(ValueError, match=r"expected target of shape \(2000, 16\), got \(1999, 16\)"):
        refine_ffn(ffn, inputs, target[1:], weights, n_held=HELD, passes=2, seed=0)
    with pytest.raises(ValueError, match="at least two tokens, got 1"):
        refine_ffn(ffn, inputs[:1], target[:1], weights[:1], n_held=HELD, passes=2, seed=0)
    with pytest.raises(ValueError, match="expected non-negative weights"):
        refine_ffn(ffn, inputs, target, -weights, n_held=HELD, passes=2, seed=0)
    for n_held in (-1, 2000, 3000):
        with pytest.raises(ValueError, match=rf"n_held from 0 to 1999, got {n_held}"):
            refine_ffn(ffn, inputs, target, weights, n_held=n_held, passes=2, seed=0)
    with pytest.raises(ValueError, match="passes >= 0, got -1"):
        refine_ffn(ffn, inputs, target, weights, n_held=HELD, passes=-1, seed=0)
