"""Sequential repair."""

import copy

import pytest
import torch

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.model.surgery import Cut, Solution, prune_ffns
from pruning.repair.refine import held_back
from pruning.repair.sequential import prune_and_fit, visit_layers

from tiny import NORMING, SCALING, assert_unchanged, outputs, state_of, tiny_model


def repair_in_sequence(model, ffns, kept, batches):
    remaining = iter(kept)
    for visit in visit_layers(model, ffns, batches):
        prune_and_fit({ffn: next(remaining) for ffn in visit.ffns}, visit.examples, refine=False, seed=0)


def all_neurons(ffns):
    return [torch.arange(ffn.width) for ffn in ffns]


@pytest.mark.parametrize("family", [*NORMING, SCALING])
def test_repair_reduces_the_error_where_layers_normalize_or_scale_the_ffn_output(family):
    ids = torch.randint(3, 260, (64, 32), generator=torch.Generator().manual_seed(2))
    dense = tiny_model(family)
    distance = {}
    for repair in ("none", "sequential"):
        model = copy.deepcopy(dense)
        prune(model, None, calibration=ids[:48], ratio=0.25, multiple_of=2, repair=repair)
        distance[repair] = (outputs(model, ids[48:]) - outputs(dense, ids[48:])).square().mean()
    assert distance["sequential"] < 0.8 * distance["none"]


def test_an_unknown_layer_between_known_ones_is_an_error_before_anything_is_captured(windows):
    model = tiny_model("Llama")
    model.model.layers[1].mlp = torch.nn.Linear(16, 16)
    options = {"calibration": windows, "ratio": 0.25, "multiple_of": 2}
    before = copy.deepcopy(model.state_dict())
    for repair in ("sequential", "lstsq"):
        with pytest.raises(
            ValueError,
            match=r"layers\.1\.mlp\.\w+\.weight: expected the weights that the config of the model describes",
        ):
            prune(model, None, repair=repair, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nan_is_reported_as_such_and_not_as_an_unknown_layer(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[0].inputs[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp: expected finite activations"):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=2)


def test_keeping_all_neurons_changes_nothing(model, windows):
    dense = outputs(model, windows)
    ffns = find_ffns(model)
    repair_in_sequence(model, ffns, all_neurons(ffns), windows.split(8))
    torch.testing.assert_close(outputs(model, windows), dense, rtol=1e-4, atol=1e-4)


def test_later_layers_compensate_for_the_error_of_earlier_ones(windows):
    """Later layers keep all neurons: only a fit to the dense hidden states can reduce the error there."""
    distance = {}
    dense = tiny_model("Llama")
    for fitted in (True, False):
        model = copy.deepcopy(dense)
        ffns = find_ffns(model)
        kept = [torch.arange(10), *all_neurons(ffns)[1:]]
        if fitted:
            repair_in_sequence(model, ffns, kept, [windows])
        else:
            repair_in_sequence(model, ffns[:1], kept[:1], [windows])
        distance[fitted] = (outputs(model, windows) - outputs(dense, windows)).square().mean()
    assert distance[True] < distance[False]


def test_a_layer_corrects_half_of_what_earlier_ones_lost(windows):
    """A first layer lost neurons, and nothing repaired it; hidden states are those of whole forward passes."""
    dense, pruned = tiny_model("Llama"), tiny_model("Llama")
    ffns = find_ffns(pruned)
    kept = torch.arange(10)
    for index, visit in enumerate(visit_layers(pruned, ffns, [windows], refine=True)):
        if index == 0:
            weight = ffns[0].output.weight.detach()[:, kept]
            prune_ffns([Cut(ffns[0], kept, Solution(weight, None))])
            continue
        read, target, _, n_held = visit.examples[ffns[1]].take()
        break
    with torch.no_grad():
        output = ffns[1].layer.mlp(read)
        states = [
            model(input_ids=windows, output_hidden_states=True).hidden_states[2] for model in (dense, pruned)
        ]
    lacking = (states[0] - states[1]).flatten(0, 1)
    held = held_back(len(lacking))
    lacking = torch.cat([lacking[~held], lacking[held]])
    assert n_held == held.sum()
    assert lacking.square().mean() > 0.01 * output.square().mean()
    torch.testing.assert_close(target - output, lacking / 2, rtol=1e-3, atol=1e-5)


def test_the_error_of_the_first_layer_is_that_of_its_output(windows):
    """Its target is its dense output, and tokens weigh by 1 / the norm of the dense hidden states after it."""
    dense, pruned = tiny_model("Llama"), tiny_model("Llama")
    report = prune(pruned, None, calibration=windows, ratio=0.25, multiple_of=2)
    wanted, got = (find_ffns(model)[0].output.owners[0] for model in (dense, pruned))
    seen = {}
    for model, projection in ((dense, wanted), (pruned, got)):
        projection.register_forward_hook(lambda module, _args, output: seen.update({module: output.double()}))
        with torch.no_grad():
            hidden = model(input_ids=windows, output_hidden_states=True).hidden_states[1].double()
        seen.setdefault("hidden", hidden)
    weight = 1 / seen["hidden"].square().mean(-1).sqrt()
    square = [(value.square().sum(-1) * weight).sum() for value in (seen[got] - seen[wanted], seen[wanted])]
    assert report.layers[0].repair_error == pytest.approx(float(square[0] / square[1]), rel=1e-3)


def test_tokens_of_massive_norm_do_not_dominate_the_fit(windows):
    """The first token of each window is a thousand times larger; the error of the others still falls."""
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
def test_refining_reduces_the_error_of_the_closed_form(family):
    ids = torch.randint(3, 260, (64, 32), generator=torch.Generator().manual_seed(2))
    dense = tiny_model(family)
    distance = {}
    for refine in (False, True):
        model = copy.deepcopy(dense)
        prune(model, None, calibration=ids[:48], ratio=0.5, multiple_of=2, refine=refine)
        distance[refine] = (outputs(model, ids[48:]) - outputs(dense, ids[48:])).square().mean()
    assert distance[True] < distance[False]


def test_an_error_in_a_later_layer_leaves_the_model_unchanged(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[2].inputs[0].weight[0, 0] = float("nan")
    before = state_of(model)
    with pytest.raises(ValueError, match=r"layers\.2\.mlp: expected finite activations"):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=2)
    assert_unchanged(model, before)


def test_a_pruned_model_can_be_pruned_again(windows):
    model = tiny_model("Llama")
    for expected in (30, 20):
        prune(model, None, calibration=windows, ratio=1 - expected / (expected + 10), multiple_of=2)
        assert [ffn.width for ffn in find_ffns(model)] == [expected] * 3
