"""What a layer does with the outputs of its FFNs: predicted effects against measured ones."""

import copy

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from pruning import prune
from pruning.model.ffn import bind_ffns, find_ffns
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.repair.sequential import Examples, fit, visit_layers
from pruning.repair.stream import Stream

from tiny import tiny

NORMING = ("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM")
"""Classes whose layers normalize the output of the FFN."""
STEP = 1e-2
"""Of the central differences, relative to the outputs of the FFN."""


def layer_of(model):
    layers = {"BertModel": "encoder.layer", "GPT2LMHeadModel": "transformer.h"}
    return model.get_submodule(layers.get(type(model).__name__, "model.layers"))[0]


def projection_of(model):
    names = {"BertModel": "output.dense", "GPT2LMHeadModel": "mlp.c_proj"}
    return layer_of(model).get_submodule(names.get(type(model).__name__, "mlp.down_proj"))


@torch.no_grad()
def outcome(model, ids):
    """`[T, d]`: the output of the first layer; of BERT, what its last norm reads."""
    seen = []

    def keep_input(_module, args):
        seen.append(args[0])

    def keep_output(_module, _args, output):
        seen.append(output if isinstance(output, torch.Tensor) else output[0])

    if type(model).__name__ == "BertModel":
        handle = layer_of(model).output.LayerNorm.register_forward_pre_hook(keep_input)
    else:
        handle = layer_of(model).register_forward_hook(keep_output)
    model(input_ids=ids)
    handle.remove()
    return seen[0].flatten(0, -2)


def with_change(model, ids, change):
    """The outcome after adding `[T, d]` to the output of the first FFN."""
    handle = projection_of(model).register_forward_hook(
        lambda _module, _args, output: output + change.view_as(output)
    )
    result = outcome(model, ids)
    handle.remove()
    return result


def errors(model, ids):
    """For each token, the relative error of the effect that the gain predicts for a small change of the FFN's output.

    A norm removes the part of a change along the output, which the gain leaves out; so the changes are orthogonal to
    the outputs.
    """
    (behind,) = Stream(model, find_ffns(model), [ids]).passes(0)
    (part,), (gain,) = behind.parts, behind.gains
    added = part.added
    change = torch.randn(added.shape, dtype=added.dtype, generator=torch.Generator().manual_seed(2))
    if type(model).__name__ in NORMING:
        along = (change * added).sum(1, keepdim=True) / added.square().sum(1, keepdim=True)
        change = change - along * added
    change = STEP * added.norm(dim=1, keepdim=True) * change / change.norm(dim=1, keepdim=True)
    measured = (with_change(model, ids, change) - with_change(model, ids, -change)) / 2
    return (gain * change - measured).norm(dim=1) / measured.norm(dim=1)


@pytest.mark.parametrize(
    "class_name", ["LlamaForCausalLM", "GraniteForCausalLM", "GPT2LMHeadModel", "BertModel", *NORMING]
)
def test_the_gain_predicts_the_effect_of_a_small_change_of_the_output(class_name, windows):
    assert errors(tiny(class_name).double(), windows[:6]).max() < 0.01


def test_the_epsilon_of_a_norm_is_found_from_tokens_with_small_outputs(windows, monkeypatch):
    """As those behind a BOS token in Gemma 3. Without epsilon, their gain would be 20 times too large."""
    scale = torch.ones(1, 16, 1)
    scale[:, 0] = 1e-3

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * scale)

    monkeypatch.setattr(Gemma3MLP, "forward", forward)
    found = errors(tiny("Gemma3ForCausalLM").double(), windows[:6]).view(6, 16)
    assert found[:, 0].max() < 0.02
    assert found[:, 1:].max() < 0.01


@pytest.mark.parametrize("class_name", ["MixtralForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM"])
def test_the_gains_of_experts_predict_the_effect_of_a_change_of_their_output_projections(class_name, windows):
    model = tiny(class_name, interleave_moe_layer_step=1) if "Llama4" in class_name else tiny(class_name)
    model, ids = model.double(), windows[:6]
    if class_name != "Llama4ForCausalLM":  # the other implementation has no float64
        model.set_experts_implementation("eager")
    (behind,) = Stream(model, find_ffns(model), [ids]).passes(0)
    layer = layer_of(model)
    stack = (layer.feed_forward if "Llama4" in class_name else layer.mlp).experts.down_proj
    generator = torch.Generator().manual_seed(2)
    change = 1e-3 * torch.randn(stack.shape, dtype=stack.dtype, generator=generator)
    predicted = torch.zeros_like(behind.outcome)
    for part, gain in zip(behind.parts, behind.gains, strict=True):
        if part.ffn.is_routed:
            mine = change[part.ffn.output.expert]
            mine = mine.t() if class_name == "MixtralForCausalLM" else mine
            predicted.index_add_(0, part.token, (gain * (part.z @ mine)).float())
    ahead = []
    for sign in (1, -1):
        with torch.no_grad():
            stack.add_(sign * change)
            ahead.append(outcome(model, ids))
            stack.sub_(sign * change)
    measured = (ahead[0] - ahead[1]) / 2
    assert (predicted - measured).norm() < 1e-3 * measured.norm()


@pytest.mark.parametrize("class_name", ["Qwen2MoeForCausalLM", "DeepseekV3ForCausalLM"])
def test_the_gain_of_a_shared_expert_is_measured_for_each_token(class_name, windows):
    """Qwen2-MoE has a gate for it; DeepSeek-V3 has none."""
    entries = {"mlp_only_layers": []} if class_name == "Qwen2MoeForCausalLM" else {"first_k_dense_replace": 0}
    model, ids = tiny(class_name, **entries), windows[:6]
    (behind,) = Stream(model, find_ffns(model), [ids]).passes(0)
    ((part, gain),) = [(p, g) for p, g in zip(behind.parts, behind.gains, strict=True) if not p.ffn.is_routed]
    expected = torch.ones_like(gain)
    if class_name == "Qwen2MoeForCausalLM":
        expected = torch.sigmoid(model.model.layers[0].mlp.shared_expert_gate(part.read))
        assert expected.std() > 0.01
    torch.testing.assert_close(gain, expected.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("class_name", ["BertModel", "LlamaForCausalLM", *NORMING])
def test_compensation_is_nearer_to_the_dense_stream_than_the_ffn_of_the_same_input(
    class_name, windows, monkeypatch
):
    """The first layer loses most of its neurons without repair; the second one can make up for some of that."""
    dense = tiny(class_name)
    model = copy.deepcopy(dense)
    ffns = find_ffns(model)
    steps = visit_layers(model, ffns, [windows])
    next(steps)
    added = Examples.add
    own = Examples(ffns[1])

    def add(self, part, target, weight):
        added(self, part, target, weight)
        added(own, part, part.added.float(), weight)

    monkeypatch.setattr(Examples, "add", add)
    kept = torch.arange(8)
    output = ffns[0].output
    prune_ffns([Cut(ffns[0], kept, Solution(output.weight.detach()[:, kept], output.bias))])
    examples = next(steps).examples[ffns[1]]

    @torch.no_grad()
    def last(model):
        return model(input_ids=windows, output_hidden_states=True).hidden_states[-1].flatten(0, -2)

    expected, error = last(dense), {}
    kept = torch.arange(0, 40, 2)
    solutions = {"own": fit(ffns[1], kept, own), "compensation": fit(ffns[1], kept, examples)}
    for name, solution in solutions.items():
        pruned = copy.deepcopy(model)
        # The config does not describe the width of the first layer yet, so that find_ffns would refuse.
        prune_ffns([Cut(bind_ffns(pruned, type(pruned))[1], kept, solution)])
        error[name] = float(((last(pruned) - expected).norm(dim=1) / expected.norm(dim=1)).square().mean())
    assert error["compensation"] < 0.97 * error["own"]


def test_a_layer_of_unknown_form_is_repaired_on_its_own_and_refuses_sequential_repair(windows, monkeypatch):
    def rectified(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)).abs()

    monkeypatch.setattr(LlamaMLP, "forward", rectified)
    options = {"calibration": windows, "ratio": 0.25, "multiple_of": 2}
    with pytest.raises(ValueError, match=r"layers\.0\.mlp: expected a layer that adds .* use repair='lstsq'"):
        prune(tiny("LlamaForCausalLM"), None, repair="sequential", **options)
    assert prune(tiny("LlamaForCausalLM"), None, **options).settings["repair"] == "lstsq"
