"""Refining one FFN toward a target."""

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import transformers

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.repair import refine
from pruning.repair.refine import held_back, neurons, refine_ffn
from pruning.repair.sequential import Examples, fit

from tiny import ARCHITECTURES, FAMILIES, VOCABULARY, tiny, tiny_model

CONV1D = "GPT2LMHeadModel"
"""Stores its projections the other way round."""
NORMALIZING = "RobertaPreLayerNormForCausalLM"
"""Normalizes the input of its FFN in the module that has the input projection."""
PREFIXING = "CpmAntForCausalLM"
"""Puts tokens of its own in front of each text."""
LOOSE = "OPTForCausalLM"
"""Has its FFN in the layer, in no module of its own."""
SIZES = {
    CONV1D: {"n_embd": 16, "n_inner": 40, "n_layer": 2, "n_head": 2},
    NORMALIZING: {
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "is_decoder": True,
    },
    PREFIXING: {
        "hidden_size": 16,
        "dim_ff": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "dim_head": 8,
        "prompt_length": 4,
    },
    LOOSE: {
        "hidden_size": 16,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
}
KEEP = torch.arange(0, 40, 2)
HELD = 200  # of 2,000 tokens


def model_of(name):
    if name not in SIZES:
        return tiny_model(name)
    torch.manual_seed(0)
    class_ = getattr(transformers, name)
    model = class_(class_.config_class(vocab_size=VOCABULARY, **SIZES[name])).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def problem(family, *, dtype=torch.float32, tokens=2000):
    """An FFN with half of its neurons and the least-squares output projection, and its dense outputs as the target."""
    torch.manual_seed(1)
    ffn = find_ffns(model_of(family).to(dtype))[0]
    inputs = torch.randn(tokens, 16).to(dtype)
    with torch.no_grad():
        z = neurons(ffn, inputs).float()
        target = run(ffn, inputs).float()
        kept = torch.cat([z[:, KEEP], torch.ones(tokens, 1)], 1)
        solution = torch.linalg.lstsq(kept, target).solution.t()
    prune_ffns([Cut(ffn, KEEP, Solution(solution[:, :-1], solution[:, -1]))])
    return ffn, inputs, target, torch.rand(tokens) + 0.5


@torch.no_grad()
def run(ffn, inputs):
    return torch.nn.functional.linear(neurons(ffn, inputs), ffn.output.weight, ffn.output.bias).float()


def error(ffn, inputs, target, weights):
    return float((weights * (run(ffn, inputs) - target).square().sum(1)).sum())


def state(ffn):
    return [p.detach().clone() for part in ffn.projections for p in part.owners[0].parameters()]


@pytest.mark.parametrize("family", [*FAMILIES, CONV1D, NORMALIZING])
def test_neurons_are_those_that_the_model_computes(family):
    model = model_of(family)
    ffn = find_ffns(model)[0]
    seen = {}
    handles = [
        projection.owners[0].register_forward_pre_hook(
            lambda _module, args, name=name: seen.update({name: args[0]})
        )
        for name, projection in (("read", ffn.inputs[0]), ("neurons", ffn.output))
    ]
    with torch.no_grad():
        model(input_ids=torch.arange(12)[None])
        for handle in handles:
            handle.remove()
        found = neurons(ffn, seen["read"].flatten(0, -2))
        torch.testing.assert_close(found, seen["neurons"].flatten(0, -2), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in (*FAMILIES, CONV1D, NORMALIZING)),
        *(
            (family, dtype)
            for family in ("Llama", "Bert")
            for dtype in (torch.bfloat16, torch.float16, torch.float64)
        ),
    ],
)
def test_the_error_falls_below_that_of_least_squares(family, dtype):
    ffn, *data = problem(family, dtype=dtype)
    before = error(ffn, *data)
    refine_ffn(ffn, *data, n_held=HELD, passes=50, seed=0)
    assert error(ffn, *data) < 0.9 * before
    assert {p.dtype for p in state(ffn)} == {dtype}


@pytest.mark.parametrize("family", [*FAMILIES, CONV1D])
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


def test_held_back_tokens_are_not_trained_on():
    """Their targets decide whether the result is used, but not what it is."""
    given, inputs, target, weights = problem("Llama")
    results = []
    for change in (0.0, 0.05):
        ffn, other = deepcopy(given), target.clone()
        other[-HELD:] += change * torch.randn(HELD, 16, generator=torch.Generator().manual_seed(3))
        assert refine_ffn(ffn, inputs, other, weights, n_held=HELD, passes=10, seed=0) < 1
        results.append(state(ffn))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_tokens_count_by_their_weights():
    given, inputs, target, weights = problem("Llama")
    weights[::2], results = 0, []
    for change in (0.0, 100.0):
        ffn, other = deepcopy(given), target.clone()
        other[::2] += change
        refine_ffn(ffn, inputs, other, weights, n_held=HELD, passes=10, seed=0)
        results.append(state(ffn))
    assert not any(torch.equal(a, b) for a, b in zip(state(given), results[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_there_are_as_many_steps_as_the_passes_over_the_tokens_of_all_processes_take(count, monkeypatch):
    ffn, *data = problem("Llama")
    ranks = SimpleNamespace(count=count, total=lambda number: count * number, add=lambda *_tensors: None)
    steps, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: steps.append(0) or step(self))
    refine_ffn(ffn, *data, n_held=HELD, passes=3, seed=0, ranks=ranks)
    assert len(steps) == math.ceil(3 * count * 2000 / 1024)


def test_weights_that_are_not_finite_are_undone(monkeypatch):
    ffn, *data = problem("Llama")
    before = state(ffn)

    def overflow(ffn, *_data, **_options):
        ffn.output.parameter.data[3, 4] = torch.nan

    monkeypatch.setattr(refine, "_train", overflow)
    assert refine_ffn(ffn, *data, n_held=HELD, passes=3, seed=0) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state(ffn), strict=True))


def test_the_seed_of_the_run_orders_the_tokens(windows):
    found = []
    for seed in (0, 1):
        model = tiny_model("Llama")
        options = {"criterion": "flap", "multiple_of": 4, "sample_size": 128}
        report = prune(model, None, calibration=windows, refine=True, seed=seed, **options)
        found.append((model.state_dict(), [layer.kept.tolist() for layer in report.layers]))
        assert min(layer.refined_error for layer in report.layers) < 1
    (first, kept), (second, also_kept) = found
    assert kept == also_kept
    assert not all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Qwen2MoeForCausalLM", "a module of its own for refine=True, got a part of"),
        (LOOSE, "a module of its own for refine=True, got a part of OPTDecoderLayer"),
    ],
)
def test_ffns_that_are_no_modules_of_their_own_are_refused_before_the_calibration_is_written(
    name, reason, tokenizer, monkeypatch
):
    def generate(*args, **kwargs):
        raise AssertionError("wrote samples")

    monkeypatch.setattr(transformers.GenerationMixin, "generate", generate)
    model = tiny(name) if name in ARCHITECTURES else model_of(name)
    options = {"sequence_length": 16, "calibration_tokens": 512, "multiple_of": 8}
    with pytest.raises(ValueError, match=f"expected an FFN that is {reason}.*; use refine=False"):
        prune(model, tokenizer, refine=True, **options)


@pytest.mark.parametrize("fault", ["another function", "another argument"])
def test_ffns_that_compute_something_else_alone_are_refused(fault, monkeypatch, windows):
    def wrong(ffn, inputs, *_rest):
        if fault == "another argument":
            raise TypeError("missing an argument")
        return 1.1 * inputs.new_ones(len(inputs), ffn.width)

    monkeypatch.setattr(refine, "neurons", wrong)
    message = (
        "missing an argument"
        if fault == "another argument"
        else r"other neurons than in the model \(relative"
    )
    with pytest.raises(ValueError, match=rf"model\.layers\.0\.mlp: expected an FFN that .*{message}"):
        prune(tiny_model("Llama"), None, calibration=windows, ratio=0.25, multiple_of=4, refine=True)


def test_rows_that_an_architecture_adds_to_the_tokens_are_counted():
    model = model_of(PREFIXING)
    ids = torch.randint(3, VOCABULARY, (24, 16), generator=torch.Generator().manual_seed(1))
    report = prune(model, None, calibration=ids, ratio=0.25, multiple_of=4, sample_size=128, refine=True)
    assert all(layer.refined_error <= 1 for layer in report.layers)


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
    weight = torch.rand(150, generator=generator)
    for change in (0.0, 10.0):
        target = wanted + change * held[:, None]
        examples = Examples(ffn, n_refined=150)
        for part in zip(*(t.split(sizes) for t in (z, read, target, weight)), strict=True):
            examples.add(SimpleNamespace(z=part[0], read=part[1]), part[2], part[3])
        examples.complete()
        fitted.append(fit(ffn, KEEP, examples).weight)
    assert torch.equal(*fitted)
    *tokens, n_held = examples.take()
    order = torch.cat([torch.arange(150)[~held], torch.arange(150)[held]])
    assert n_held == 10
    for found, expected in zip(tokens, (read, target, weight), strict=True):
        assert torch.equal(found, expected[order])


def test_a_single_token_is_not_held_back():
    assert held_back(1).tolist() == [False]


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
    with pytest.raises(ValueError, match="expected tokens that are held back, got none of 2000"):
        refine_ffn(ffn, inputs, target, weights, n_held=0, passes=2, seed=0)
    with pytest.raises(ValueError, match="expected non-negative weights"):
        refine_ffn(ffn, inputs, target, -weights, n_held=HELD, passes=2, seed=0)
    for n_held in (-1, 2000, 3000):
        with pytest.raises(ValueError, match=rf"n_held from 0 to 1999, got {n_held}"):
            refine_ffn(ffn, inputs, target, weights, n_held=n_held, passes=2, seed=0)
    with pytest.raises(ValueError, match="passes >= 0, got -1"):
        refine_ffn(ffn, inputs, target, weights, n_held=HELD, passes=-1, seed=0)
