"""The two guards against families that cannot be pruned: trying on a few tokens, and building from the config."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.model.saved import check_config
from pruning.observe.trial import check_neurons, reached_knobs

from tiny import assert_unchanged, state_of, tiny, tiny_config

COMMON = {"ratio": 0.25, "multiple_of": 2}


def normalized(self, x):
    z = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(z * z.square().mean(-1, keepdim=True).add(1e-6).rsqrt())


def mixed(self, x):
    z = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(z + z.roll(1, -1))


def softmax(self, x):
    return self.down_proj(torch.softmax(self.gate_proj(x), -1) * self.up_proj(x))


def interleaved(self, x):
    product = self.gate_up_proj(x)
    return self.down_proj(self.activation_fn(product[..., 0::2]) * product[..., 1::2])


def halves(_self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return (up + 1) * gate * torch.sigmoid(gate)


def scaled(self, x):
    """The number of neurons counts."""
    z = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(z) * 40 / self.intermediate_size


def leaking(self, x):
    """The neurons are used twice."""
    z = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(z) + z.mean(-1, keepdim=True)


BROKEN = {
    "a norm over neurons": ("LlamaForCausalLM", LlamaMLP, "forward", normalized),
    "mixed neurons": ("LlamaForCausalLM", LlamaMLP, "forward", mixed),
    "a softmax over neurons": ("LlamaForCausalLM", LlamaMLP, "forward", softmax),
    "interleaved instead of halves": ("Phi3ForCausalLM", Phi3MLP, "forward", interleaved),
    "halves instead of interleaved": ("GptOssForCausalLM", GptOssExperts, "_apply_gate", halves),
}


@pytest.mark.parametrize("repair", ["none", "auto"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_family_whose_kept_neurons_change_is_refused_by_name_and_left_unchanged(
    kind, repair, windows, monkeypatch
):
    class_name, class_, method, forward = BROKEN[kind]
    monkeypatch.setattr(class_, method, forward)
    model = tiny(class_name)
    before, config = state_of(model), model.config.to_dict()
    with pytest.raises(
        ValueError, match=r"model\.layers\.0\.mlp.*: expected neurons that do not depend on each other"
    ):
        prune(model, None, calibration=windows, repair=repair, **(COMMON | {"multiple_of": 4}))
    assert_unchanged(model, before)
    assert model.config.to_dict() == config
    widths = {"LlamaForCausalLM": 40, "Phi3ForCausalLM": 40, "GptOssForCausalLM": 24}
    assert {ffn.width for ffn in find_ffns(model)} == {widths[class_name]}


@pytest.mark.parametrize("forward", [scaled, leaking])
def test_a_layer_that_uses_its_neurons_in_another_way_is_refused_by_name(forward, windows, monkeypatch):
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    model = tiny("LlamaForCausalLM")
    before = state_of(model)
    expected = r"layers\.0\.mlp: expected a layer that uses its neurons only in their output projection"
    with pytest.raises(ValueError, match=expected):
        prune(model, None, calibration=windows, repair="none", **COMMON)
    assert_unchanged(model, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("class_name", ["LlamaForCausalLM", "Phi3ForCausalLM", "GptOssForCausalLM"])
def test_what_can_be_pruned_passes_in_every_dtype_and_is_left_unchanged(class_name, dtype, windows):
    model = tiny(class_name).to(dtype)
    ffns, before = find_ffns(model), state_of(model)
    check_neurons(model, ffns, windows[:1, :8])
    assert_unchanged(model, before)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(m.out_features, m.in_features) for m in linears] == [tuple(m.weight.shape) for m in linears]


def test_a_product_that_cannot_be_observed_is_refused_by_name(windows, monkeypatch):
    def forward(self, x):
        gate, up = (torch.einsum("bld,nd->bln", x, part.weight) for part in (self.gate_proj, self.up_proj))
        return self.down_proj(self.act_fn(gate) * up)

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    expected = r"layers\.0\.mlp: expected a product with its input projection before"
    with pytest.raises(ValueError, match=expected):
        prune(tiny("LlamaForCausalLM"), None, calibration=windows, **COMMON)


def test_calibration_that_reaches_only_some_ffns_of_an_entry_is_refused(windows):
    """T5 has one entry for the encoder and the decoder."""
    model = tiny("T5ForConditionalGeneration")
    ffns = find_ffns(model)
    encoder = copy.copy(model)
    encoder.forward = lambda input_ids, **_: model.encoder(input_ids=input_ids)
    encoder.__dict__["base_model_prefix"] = ""
    with pytest.raises(
        ValueError, match=r"decoder\.block\.0.*: expected calibration that reaches all FFNs of .* d_ff"
    ):
        reached_knobs(encoder, ffns, windows)


def test_a_model_that_does_not_run_on_its_calibration_is_named(windows):
    model = tiny("WhisperForConditionalGeneration")
    batch = {"input_features": torch.randn(24, 9, 16), "decoder_input_ids": windows}
    expected = (
        "WhisperForConditionalGeneration: expected a model that runs on its calibration, got: .*channels"
    )
    with pytest.raises(ValueError, match=expected):
        prune(model, None, calibration=[batch], **COMMON)


class DrivesAnother(transformers.LlamaForCausalLM):
    """The width also decides about another weight, but not at the step by which entries are raised."""

    def __init__(self, config):
        super().__init__(config)
        self.other = nn.Linear(4, 4 if config.intermediate_size > 36 else 8)


class HasAFloor(transformers.LlamaForCausalLM):
    """The width does not follow the entry below 40."""

    def __init__(self, config):
        config = copy.deepcopy(config)
        width, config.intermediate_size = config.intermediate_size, max(config.intermediate_size, 40)
        super().__init__(config)
        self.config.intermediate_size = width


class Refuses(transformers.LlamaForCausalLM):
    def __init__(self, config):
        if config.intermediate_size < 40:
            raise AssertionError("too narrow for me")
        super().__init__(config)


class LosesAWeight(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        if config.intermediate_size >= 40:
            self.optional = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("class_", "message"),
    [
        (
            DrivesAnother,
            r"other\.(weight|bias): expected only FFNs to change .* drives this weight of DrivesAnother",
        ),
        (
            HasAFloor,
            r"model\.layers\.0\.mlp.*: expected its width to follow the config, but with interm.*=30",
        ),
        (Refuses, r"Refuses cannot be built with intermediate_size=30: too narrow for me"),
        (LosesAWeight, r"LosesAWeight: expected the weights that its config describes.* optional\."),
    ],
)
def test_a_config_that_would_not_describe_the_result_is_refused_before_pruning(class_, message, windows):
    torch.manual_seed(0)
    model = class_(tiny_config("LlamaForCausalLM")).eval()
    before, config = state_of(model), model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        prune(model, None, calibration=windows, **COMMON)
    assert_unchanged(model, before)
    assert model.config.to_dict() == config


def test_a_tie_that_the_config_does_not_describe_is_refused():
    model = tiny("LlamaForCausalLM")
    ffns = find_ffns(model)
    check_config(model, ffns, [30, 30])
    layers = model.model.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    with pytest.raises(ValueError, match=r"expected weights that are tied as in its config.*mlp\.down_proj"):
        check_config(model, find_ffns(model), [30, 30])


@pytest.mark.skipif(
    not hasattr(transformers.PretrainedConfig, "per_layer_config"),
    reason="transformers has no per_layer_config",
)
def test_transformers_does_not_build_layers_of_different_widths_from_a_config():
    """If it does one day, `per_layer_config` should be written beside our list of widths."""
    config = tiny_config("LlamaForCausalLM")
    config.per_layer_config = {0: {"intermediate_size": 32}}
    with pytest.raises(RuntimeError, match="'intermediate_size' is a per-layer attribute"):
        transformers.LlamaForCausalLM(config)
