import copy

import pytest
import torch
import transformers

from pruning import prune
from pruning.model.families import find_ffns
from pruning.model.surgery import prune_ffn
from pruning.repair.closed_form import Projection
from pruning.repair.lockstep import Stream
from pruning.repair.sequential import repair_in_sequence

from tiny import CAUSAL, FAMILIES, NORMING, SCALING, outputs, tiny_model


def everything(ffns):
    return [torch.arange(ffn.width) for ffn in ffns]


def test_a_stream_arrives_where_the_model_does(model, windows):
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


def test_a_step_tells_apart_what_goes_past_the_ffn_and_what_it_adds(model, windows):
    ffn = find_ffns(model)[0]
    stream = Stream(model, find_ffns(model), [windows])
    step = next(iter(stream.steps(0, advance=True)))
    bias = 0 if ffn.output.bias is None else ffn.output.bias
    torch.testing.assert_close(step.added, step.z @ ffn.output.weight.t() + bias)
    if not ffn.normed_after:
        torch.testing.assert_close(step.skipped + step.added, stream.hidden[0].flatten(0, -2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *NORMING, SCALING])
def test_what_a_layer_does_with_what_its_ffn_gives_is_found_out(family, dtype, windows):
    model = tiny_model(family).to(dtype)
    if family in CAUSAL:
        with torch.no_grad():  # a stream beside which the FFNs are small
            model.model.embed_tokens.weight.mul_(1000)
    stream = Stream(model, find_ffns(model), [windows])
    for index in range(3):
        step = next(iter(stream.steps(index, advance=True)))
        if family in NORMING:
            assert step.skipped is None
        else:
            assert step.scale == pytest.approx(0.3 if family == SCALING else 1.0, rel=0.01)
            assert step.skipped is not None


def test_an_ffn_that_adds_nothing_can_still_be_skipped(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[1].output.weight.zero_()
    stream = Stream(model, find_ffns(model), [windows])
    stream.advance(0)
    step = next(iter(stream.steps(1, advance=True)))
    assert torch.equal(step.skipped, stream.hidden[0].flatten(0, -2))


def test_an_encoder_that_norms_before_its_ffn_is_followed(windows):
    """ESM names its parts as BERT does."""
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
    step = next(iter(stream.steps(0, advance=True)))
    torch.testing.assert_close(step.skipped + step.added, stream.hidden[0].flatten(0, -2))


@pytest.mark.parametrize("family", [*FAMILIES, *NORMING, SCALING])
def test_a_stream_resumes_where_the_pruned_layer_takes_it(family, windows):
    model = tiny_model(family)
    ffns = find_ffns(model)
    resumed = Stream(model, ffns, windows.split(7))
    steps = list(resumed.steps(0))
    prune_ffn(ffns[0], torch.arange(10), Projection(ffns[0].output.weight[:, :10], ffns[0].output.bias))
    through = resumed.copy()
    through.advance(0)
    resumed.resume(0, steps)
    torch.testing.assert_close(torch.cat(resumed.hidden), torch.cat(through.hidden))


@pytest.mark.parametrize("family", [*NORMING, SCALING])
def test_repair_comes_closer_where_layers_do_not_just_add(family):
    ids = torch.randint(3, 260, (64, 32), generator=torch.Generator().manual_seed(2))
    dense = tiny_model(family)
    distance = {}
    for repair in ("none", "sequential"):
        model = copy.deepcopy(dense)
        prune(model, None, calibration=ids[:48], ratio=0.25, multiple_of=2, repair=repair)
        distance[repair] = (outputs(model, ids[48:]) - outputs(dense, ids[48:])).square().mean()
    assert distance["sequential"] < 0.8 * distance["none"]


def test_layers_with_something_between_them_are_refused(windows):
    model = tiny_model("Llama")
    ffns = find_ffns(model)
    with pytest.raises(
        ValueError, match=r"layers\.2\.mlp: expected its layer to read what .*layers\.0\.mlp wrote"
    ):
        Stream(model, [ffns[0], ffns[2]], [windows])


def test_a_foreign_layer_between_known_ones_is_refused_before_anything_is_captured(windows, monkeypatch):
    model = tiny_model("Llama")
    model.model.layers[1].mlp = torch.nn.Linear(16, 16)
    options = {"calibration": windows, "ratio": 0.25, "multiple_of": 2}
    with monkeypatch.context() as patched:
        patched.setattr("pruning.pipeline.capture", None)
        with pytest.raises(
            ValueError,
            match=r"layers\.2\.mlp: expected .*layers\.0\.mlp wrote; .* repair='lstsq' is what goes",
        ):
            prune(model, None, **options)
    prune(model, None, repair="lstsq", **options)
    assert [ffn.width for ffn in find_ffns(model)] == [30, 30]


def test_not_a_number_is_named_by_its_layer_and_not_taken_for_a_foreign_one(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[0].inputs[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp: expected finite activations"):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=2)


def test_nothing_changes_where_nothing_goes(model, windows):
    dense = outputs(model, windows)
    ffns = find_ffns(model)
    repair_in_sequence(model, ffns, everything(ffns), windows.split(8))
    torch.testing.assert_close(outputs(model, windows), dense, rtol=1e-4, atol=1e-4)


def test_later_layers_make_up_for_what_earlier_ones_lost(windows):
    """With all neurons of the last layer kept, only a fit to the dense residual can gain anything there."""
    distance = {}
    dense = tiny_model("Llama")
    for fitted in (True, False):
        model = copy.deepcopy(dense)
        ffns = find_ffns(model)
        kept = [torch.arange(10), *everything(ffns)[1:]]
        if fitted:
            repair_in_sequence(model, ffns, kept, [windows])
        else:
            repair_in_sequence(model, ffns[:1], kept[:1], [windows])
        distance[fitted] = (outputs(model, windows) - outputs(dense, windows)).square().mean()
    assert distance[True] < distance[False]


def test_tokens_of_massive_norm_do_not_rule_the_fit(windows):
    """The first token of each window is a thousand times as large; the others are repaired all the same."""
    model = tiny_model("Llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[3] *= 1000
    ids = windows.masked_fill(windows == 3, 4)
    ids[:, 0] = 3
    dense = outputs(model, ids)[:, 1:]
    distance = {}
    for repair in ("none", "sequential"):
        pruned = copy.deepcopy(model)
        prune(pruned, None, calibration=ids, ratio=0.25, multiple_of=2, repair=repair)
        distance[repair] = (outputs(pruned, ids)[:, 1:] - dense).square().mean()
    assert distance["sequential"] < 0.8 * distance["none"]


@pytest.mark.parametrize("family", ["Llama", "Bert"])
def test_refining_comes_closer_than_the_closed_form(family):
    ids = torch.randint(3, 260, (64, 32), generator=torch.Generator().manual_seed(2))
    dense = tiny_model(family)
    distance = {}
    for refine in (False, True):
        model = copy.deepcopy(dense)
        prune(model, None, calibration=ids[:48], ratio=0.5, multiple_of=2, refine=refine)
        distance[refine] = (outputs(model, ids[48:]) - outputs(dense, ids[48:])).square().mean()
    assert distance[True] < distance[False]


def test_an_error_half_way_leaves_the_model_as_it_was(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[2].inputs[0].weight[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layers\.2\.mlp: expected finite activations"):
        repair_in_sequence(model, find_ffns(model), [torch.arange(30)] * 3, [windows])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or value.isnan().any()


def test_a_second_pruning_starts_from_the_first(windows):
    model = tiny_model("Llama")
    for expected in (30, 20):
        prune(model, None, calibration=windows, ratio=1 - expected / (expected + 10), multiple_of=2)
        assert [ffn.width for ffn in find_ffns(model)] == [expected] * 3
