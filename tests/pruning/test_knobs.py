"""The config entries that set widths, compared with what the code of the classes in transformers says."""

import copy
from fractions import Fraction

import pytest
import torch
import transformers

from pruning.model.ffn import check_found, find_ffns
from pruning.model.knobs import Knob, find_knobs, read_entry, set_entry
from pruning.model.surgery import resize_ffn

from tiny import tiny, tiny_config, tiny_model


def knobs_of(class_name: str, **entries):
    return find_knobs(getattr(transformers, class_name), tiny_config(class_name, **entries))


def described(knob: Knob) -> tuple:
    """The entry, its value, and for each place: output, experts, scale; and axis, copies, interleaved of each slot."""
    places = [
        (
            place.output.name,
            place.output.axis,
            place.experts,
            place.scale,
            [(slot.name.removeprefix(f"{place.name}."), slot.axis) for slot in place.inputs],
            [(slot.copies, slot.interleaved) for slot in place.inputs],
        )
        for place in knob.places
    ]
    return str(knob), knob.value, places


def gated(block: str, scale: int = 1):
    """A block of three `nn.Linear`, as in Llama."""
    inputs = [("gate_proj.weight", 0), ("up_proj.weight", 0)]
    return f"{block}.down_proj.weight", 1, None, scale, inputs, [(1, False)] * 2


def stack(block: str, experts: int):
    """The usual stack of experts: `gate_up_proj [E, 2 N, d]` in halves, `down_proj [E, d, N]`."""
    return f"{block}.down_proj", 1, experts, 1, [("gate_up_proj", 0)], [(2, False)]


def test_llama_has_one_knob_for_all_layers():
    (knob,) = knobs_of("LlamaForCausalLM").found
    assert described(knob) == (
        "intermediate_size",
        40,
        [gated(f"model.layers.{layer}.mlp") for layer in range(2)],
    )
    assert {a[1]: a[2] for a in knob.places[0].attributes} == {
        "intermediate_size": 1,
        "out_features": 1,
        "in_features": 1,
    }


@pytest.mark.parametrize(("n_inner", "width"), [(None, 64), (40, 40)])
def test_the_conv1d_of_gpt2_has_its_axes_the_other_way_round_with_and_without_an_entry(n_inner, width):
    (knob,) = knobs_of("GPT2LMHeadModel", n_inner=n_inner, n_layer=1).found
    block = "transformer.h.0.mlp"
    inputs = [("c_fc.weight", 1), ("c_fc.bias", 0)]
    assert described(knob) == (
        "n_inner",
        width,
        [(f"{block}.c_proj.weight", 0, None, 1, inputs, [(1, False)] * 2)],
    )
    assert knob.places[0].output_bias


def test_phi3_fuses_gate_and_up_in_halves():
    (knob,) = knobs_of("Phi3ForCausalLM", num_hidden_layers=1).found
    place = ("model.layers.0.mlp.down_proj.weight", 1, None, 1, [("gate_up_proj.weight", 0)], [(2, False)])
    assert described(knob) == ("intermediate_size", 40, [place])


def test_gpt_oss_stores_experts_transposed_and_interleaved_with_biases():
    (knob,) = knobs_of("GptOssForCausalLM", num_hidden_layers=1).found
    inputs = [("gate_up_proj", 1), ("gate_up_proj_bias", 0)]
    place = ("model.layers.0.mlp.experts.down_proj", 0, 4, 1, inputs, [(2, True)] * 2)
    assert described(knob) == ("intermediate_size", 24, [place])
    assert knob.places[0].output_bias


def test_deepseek_has_a_knob_for_dense_layers_and_one_for_routed_and_two_shared_experts():
    dense, experts = knobs_of("DeepseekV3ForCausalLM").found
    block = "model.layers.1.mlp"
    assert described(dense) == ("intermediate_size", 48, [gated("model.layers.0.mlp")])
    shared = gated(f"{block}.shared_experts", scale=2)
    assert described(experts) == (
        "moe_intermediate_size",
        24,
        [stack(f"{block}.experts", 4), shared],
    )


def test_qwen2_moe_has_three_knobs():
    block = "model.layers.1.mlp"
    assert [described(knob) for knob in knobs_of("Qwen2MoeForCausalLM").found] == [
        ("intermediate_size", 48, [gated("model.layers.0.mlp")]),
        ("moe_intermediate_size", 24, [stack(f"{block}.experts", 4)]),
        ("shared_expert_intermediate_size", 40, [gated(f"{block}.shared_expert")]),
    ]


def test_equal_values_of_several_entries_do_not_mix_their_ffns():
    entries = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    found = knobs_of("Qwen2MoeForCausalLM", **dict.fromkeys(entries, 48)).found
    outputs = [[place.output.name.split(".")[2:-1] for place in knob.places] for knob in found]
    assert [str(knob) for knob in found] == list(entries)
    assert outputs == [
        [["0", "mlp", "down_proj"]],
        [["1", "mlp", "experts"]],
        [["1", "mlp", "shared_expert", "down_proj"]],
    ]


def test_llama4_has_experts_and_a_shared_expert_in_one_knob_and_dense_layers_in_another():
    dense, experts = knobs_of("Llama4ForCausalLM").found
    block = "model.layers.1.feed_forward"
    assert described(dense) == ("intermediate_size_mlp", 48, [gated("model.layers.0.feed_forward")])
    routed = (f"{block}.experts.down_proj", 0, 4, 1, [("gate_up_proj", 1)], [(2, False)])
    assert described(experts) == ("intermediate_size", 24, [routed, gated(f"{block}.shared_expert")])


def test_t5_has_one_knob_for_the_gated_ffns_of_encoder_and_decoder():
    (knob,) = knobs_of("T5ForConditionalGeneration", num_layers=1).found
    inputs = [("wi_0.weight", 0), ("wi_1.weight", 0)]
    blocks = ["encoder.block.0.layer.1.DenseReluDense", "decoder.block.0.layer.2.DenseReluDense"]
    assert described(knob) == (
        "d_ff",
        40,
        [(f"{block}.wo.weight", 1, None, 1, inputs, [(1, False)] * 2) for block in blocks],
    )


def test_bart_and_clip_have_a_knob_for_each_side():
    bart = [(str(k), k.value, len(k.places)) for k in knobs_of("BartForConditionalGeneration").found]
    assert bart == [("encoder_ffn_dim", 40, 2), ("decoder_ffn_dim", 48, 2)]
    clip = [(str(k), k.value, len(k.places)) for k in knobs_of("CLIPModel").found]
    assert clip == [("text_config.intermediate_size", 48, 2), ("vision_config.intermediate_size", 40, 2)]


def test_the_width_of_dinov2_is_a_ratio_of_its_hidden_size():
    (knob,) = knobs_of("Dinov2Model", num_hidden_layers=1).found
    inputs = [("fc1.weight", 0), ("fc1.bias", 0)]
    block = "encoder.layer.0.mlp"
    assert described(knob) == (
        "mlp_ratio",
        4 * 16,
        [(f"{block}.fc2.weight", 1, None, 1, inputs, [(1, False)] * 2)],
    )


def test_every_width_that_a_ratio_may_have_is_what_the_class_builds():
    (knob,) = knobs_of("Dinov2Model", num_hidden_layers=1).found
    config = tiny_config("Dinov2Model", num_hidden_layers=1)
    for width in range(knob.step, 65, knob.step):
        set_entry(config, knob.path, knob.entry(width))
        with torch.device("meta"):
            built = transformers.Dinov2Model(copy.deepcopy(config))
        assert built.encoder.layer[0].mlp.fc2.in_features == width


def test_the_layout_ffn_of_lilt_is_a_quarter_as_wide_and_in_the_same_layer():
    (knob,) = knobs_of("LiltModel", num_hidden_layers=1).found
    layer = "encoder.layer.0"
    assert knob.value == 64
    found = [(place.name, place.output.name, place.scale) for place in knob.places]
    assert found == [
        (layer, f"{layer}.output.dense.weight", 1),
        (layer, f"{layer}.layout_output.dense.weight", Fraction(1, 4)),
    ]
    inputs = [[slot.name for slot in place.inputs] for place in knob.places]
    assert inputs == [
        [f"{layer}.{name}.dense.{kind}" for kind in ("weight", "bias")]
        for name in ("intermediate", "layout_intermediate")
    ]


def test_pruned_modules_say_their_size_also_where_two_ffns_are_in_one_layer():
    model = tiny("LiltModel", num_hidden_layers=1)
    for ffn in find_ffns(model):
        resize_ffn(ffn, ffn.width - 8)
    linears = [module for module in model.encoder.modules() if isinstance(module, torch.nn.Linear)]
    assert [(m.out_features, m.in_features) for m in linears] == [tuple(m.weight.shape) for m in linears]
    assert model.encoder.layer[0].intermediate.dense.out_features == 56


def test_albert_shares_one_ffn_among_all_layers():
    (knob,) = knobs_of("AlbertModel").found
    (place,) = knob.places
    assert (str(knob), knob.value, place.scale) == ("intermediate_size", 40, 1)
    assert place.output.name == "encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight"
    (ffn,) = find_ffns(tiny("AlbertModel"))
    assert ffn.width == 40


def test_each_item_of_a_list_of_widths_is_a_knob():
    found = knobs_of("Gemma3nForCausalLM")
    widths = [48, 48, 40, 48]
    assert [described(knob) for knob in found.found] == [
        (f"intermediate_size.{layer}", widths[layer], [gated(f"model.layers.{layer}.mlp")])
        for layer in range(4)
    ]
    assert not found.rejected


def test_one_item_of_a_list_can_be_set_without_changing_the_type_or_the_other_items():
    config = tiny_config("Gemma3nForCausalLM")
    set_entry(config, ("intermediate_size", 2), 16)
    assert config.intermediate_size == [48, 48, 16, 48]
    assert read_entry(config, ("intermediate_size", 2)) == 16


def test_a_norm_over_the_neurons_is_named_as_the_reason_why_bitnet_has_no_knob():
    found = knobs_of("BitNetForCausalLM")
    assert found.found == ()
    assert found.rejected.keys() == {"intermediate_size"}
    assert "model.layers.0.mlp.ffn_sub_norm.weight" in found.rejected["intermediate_size"]
    assert "norm" in found.rejected["intermediate_size"]


def test_the_ffn_of_bloom_is_named_although_no_entry_sets_its_width():
    found = knobs_of("BloomForCausalLM")
    assert found.found == ()
    assert list(found.rejected.values()) == [
        "1 such as transformer.h.0.mlp.dense_4h_to_h, whose width no entry sets"
    ]


def test_an_entry_that_sets_the_width_of_parameters_in_an_unknown_layout_is_named():
    """DBRX stores its experts below each other in matrices, so no axis is that of the neurons of one."""
    found = knobs_of("DbrxForCausalLM")
    assert found.found == ()
    name = "transformer.blocks.0.ffn.experts.mlp.v1"
    assert found.unknown["ffn_config.ffn_hidden_size"] == name
    with pytest.raises(
        ValueError, match=f"got none; ffn_config.ffn_hidden_size sets the shape of {name}, whose"
    ):
        check_found("DbrxForCausalLM", found)


def test_experts_of_different_numbers_are_left_with_the_reason_in_longcat():
    """Its identity experts have rows in the input projection but none in the output projection."""
    found = knobs_of("LongcatFlashForCausalLM")
    (knob,) = found.found
    assert described(knob) == (
        "ffn_hidden_size",
        48,
        [gated(f"model.layers.0.mlps.{index}") for index in range(2)],
    )
    assert found.rejected == {
        "expert_ffn_hidden_size": "model.layers.0.mlp.experts.gate_up_proj has 6 experts, "
        "model.layers.0.mlp.experts.down_proj 4"
    }


def test_a_pure_state_space_model_has_no_ffn():
    assert knobs_of("MambaForCausalLM").found == ()


@pytest.mark.parametrize(
    "class_name",
    [
        "LlamaForCausalLM",
        "GPT2LMHeadModel",
        "GptOssForCausalLM",
        "DeepseekV3ForCausalLM",
        "JetMoeForCausalLM",
        "T5ForConditionalGeneration",
    ],
)
def test_all_that_depends_on_a_knob_and_nothing_else_is_in_its_places(class_name):
    """Twice the entry doubles one axis of each slot, and changes no other shape."""
    class_, config = getattr(transformers, class_name), tiny_config(class_name)
    for knob in find_knobs(class_, config).found:
        larger = copy.deepcopy(config)
        set_entry(larger, knob.path, 2 * knob.value)
        with torch.device("meta"):
            before, after = (
                {name: tuple(p.shape) for name, p in class_(copy.deepcopy(c)).named_parameters()}
                for c in (config, larger)
            )
        expected = dict(before)
        for place in knob.places:
            for slot in (*place.inputs, place.output):
                shape = list(before[slot.name])
                shape[slot.axis + (place.experts is not None)] *= 2
                expected[slot.name] = tuple(shape)
        assert after == expected


def test_the_config_is_not_changed_by_the_experiments():
    config = tiny_config("Qwen2MoeForCausalLM")
    before = config.to_dict()
    find_knobs(transformers.Qwen2MoeForCausalLM, config)
    assert config.to_dict() == before


def test_a_changed_config_is_not_mistaken_for_the_one_before():
    assert knobs_of("LlamaForCausalLM").found[0].value == 40
    assert knobs_of("LlamaForCausalLM", intermediate_size=56).found[0].value == 56


def test_ffns_that_are_too_narrow_are_refused_as_such():
    with pytest.raises(ValueError, match="intermediate_size: FFNs of 12 neurons, expected 16 or more"):
        find_ffns(tiny_model("Llama", width=12))
