"""A stream of hidden states through a model."""

import pytest
import torch
import transformers

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.repair.stream import Stream

from tiny import CAUSAL, FAMILIES, NORMING, SCALING, outputs, tiny_model


def test_a_stream_ends_at_the_last_hidden_states_of_the_model(model, windows):
    ffns = find_ffns(model)
    stream = Stream(model, ffns, windows.split(7))  # the last batch is a smaller one
    for index in range(len(ffns)):
        stream.advance(index)
    expected = []
    handle = ffns[-1].layer.register_forward_hook(
        lambda _m, _a, output: expected.append(output if torch.is_tensor(output) else output[0])
    )
    outputs(model, windows)
    handle.remove()
    torch.testing.assert_close(torch.cat(stream.hidden), expected[0])


def test_a_pass_holds_the_ffn_and_what_the_layer_makes_of_it(model, windows):
    ffn = find_ffns(model)[0]
    stream = Stream(model, find_ffns(model), [windows])
    layer_pass = next(iter(stream.passes(0, advance=True)))
    (part,) = layer_pass.parts
    bias = 0 if ffn.output.bias is None else ffn.output.bias
    assert part.ffn is stream.ffns[0][0]
    torch.testing.assert_close(part.added, part.z @ ffn.output.weight.t() + bias)
    if type(model).__name__ == "BertModel":
        norm = model.encoder.layer[0].output.LayerNorm
        torch.testing.assert_close(norm(layer_pass.outcome), stream.hidden[0].flatten(0, -2))
    else:
        assert torch.equal(layer_pass.outcome, stream.hidden[0].flatten(0, -2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *NORMING, SCALING])
def test_what_a_layer_does_with_its_ffn_is_found(family, dtype, windows):
    model = tiny_model(family).to(dtype)
    if family in CAUSAL:
        with torch.no_grad():  # makes the FFN outputs small relative to the hidden states
            model.model.embed_tokens.weight.mul_(1000)
    stream = Stream(model, find_ffns(model), [windows])
    for index in range(len(stream.layers)):
        form = stream.find_form(index)
        stream.advance(index)
        assert form.normalizes_sum == (family == "Bert")
        if family in NORMING:
            weight = model.model.layers[index].post_feedforward_layernorm.weight.float()
            expected = weight + 1 if family == "Gemma2" else weight
            torch.testing.assert_close(form.norm, expected.detach(), rtol=0.02, atol=0.02)
        else:
            assert form.norm is None
            assert form.scale == pytest.approx(0.3 if family == SCALING else 1.0, rel=0.01)


def test_an_ffn_with_zero_output_adds_nothing(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[1].output.weight.zero_()
    stream = Stream(model, find_ffns(model), [windows])
    stream.advance(0)
    (part,) = next(iter(stream.passes(1, advance=True))).parts
    assert not part.added.any()
    assert stream.find_form(1).scale == 1


def test_an_encoder_that_normalizes_before_its_ffn_is_followed(windows):
    """ESM uses the module names of BERT."""
    config = transformers.EsmConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=0,
        mask_token_id=1,
        position_embedding_type="rotary",
    )
    model = transformers.EsmModel(config).eval()
    stream = Stream(model, find_ffns(model), [windows])
    for index in range(3):
        form = stream.find_form(index)
        stream.advance(index)
        assert (form.scale, form.normalizes_sum, form.norm) == (1.0, False, None)


@pytest.mark.parametrize("family", [*FAMILIES, *NORMING, SCALING])
def test_resuming_gives_the_output_of_the_pruned_layer(family, windows):
    model = tiny_model(family)
    ffns = find_ffns(model)
    resumed = Stream(model, ffns, windows.split(7))
    through = resumed.copy()
    bypasses = [resumed.bypass(0, batch, before) for batch, before in enumerate(resumed.passes(0))]
    prune_ffns([Cut(ffns[0], torch.arange(10), Solution(ffns[0].output.weight[:, :10], ffns[0].output.bias))])
    through.advance(0)
    resumed.resume(0, bypasses)
    torch.testing.assert_close(torch.cat(resumed.hidden), torch.cat(through.hidden))


def test_layers_without_an_ffn_in_between_are_run(windows):
    model = tiny_model("Llama")
    ffns = find_ffns(model)
    stream = Stream(model, [ffns[0], ffns[2]], [windows])
    stream.advance(0)
    stream.advance(1)
    expected = model.model(input_ids=windows, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(stream.hidden[0], expected)


def test_layers_that_get_more_from_the_tokens_than_their_input_are_not_followed(windows):
    """Such as an embedding for each layer: one by one they would get that of another batch."""
    model = tiny_model("Llama")
    embedded = []
    model.model.embed_tokens.register_forward_hook(lambda _m, _args, output: embedded.append(output))
    model.model.layers[1].register_forward_hook(lambda _m, _args, output: output + embedded[-1][:, :1])
    options = {"calibration": windows, "ratio": 0.25, "multiple_of": 2}
    with pytest.raises(ValueError, match="layers that depend on their input only"):
        prune(model, None, repair="sequential", **options)
    assert prune(model, None, **options).settings["repair"] == "lstsq"
