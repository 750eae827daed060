import copy
import json
from typing import get_args

import pytest
import torch

import mikernels
from pruning import Settings, prune
from pruning.choose.budget import uniform_width
from pruning.model.ffn import find_ffns
from pruning.settings import Budget, Criterion
from pruning.threshold import null_threshold

from tiny import assert_unchanged, masked, outputs, state_of, tiny_model

TEXT = ("The quick brown fox jumps over the lazy dog. " * 60)[:1024]


@pytest.mark.parametrize("criterion", get_args(Criterion))
def test_without_repair_the_pruned_model_is_the_dense_one_with_the_dropped_neurons_set_to_zero(
    model, criterion, windows
):
    dense = copy.deepcopy(model)
    options = {"ratio": 0.25, "criterion": criterion, "multiple_of": 2, "repair": "none"}
    report = prune(model, None, calibration=windows, **options)
    assert [ffn.width for ffn in find_ffns(model)] == [30, 30, 30]
    for layer in report.layers:
        assert sorted(layer.kept.tolist() + layer.dropped.tolist()) == list(range(40))
    expected = outputs(masked(dense, report), windows)
    torch.testing.assert_close(outputs(model, windows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", get_args(Budget))
@pytest.mark.parametrize("repair", ["lstsq", "sequential"])
def test_repair_reduces_the_error_of_the_dropped_neurons_under_every_budget(model, repair, budget, windows):
    dense = copy.deepcopy(model)
    options = {"ratio": 0.25, "multiple_of": 2, "sample_size": 128}
    report = prune(model, None, calibration=windows, repair=repair, budget=budget, **options)
    widths = [ffn.width for ffn in find_ffns(model)]
    assert widths == report.widths
    assert sum(widths) == 90
    assert budget != "uniform" or widths == [30, 30, 30]
    unrepaired = masked(dense, report)
    expected = outputs(dense, windows)
    error, cut = ((outputs(m, windows) - expected).square().mean() for m in (model, unrepaired))
    assert error < cut


def test_a_budget_takes_most_from_the_layer_that_matters_least(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(0.01)  # its FFN hardly matters
    report = prune(model, None, calibration=windows, ratio=0.5, multiple_of=2, budget="kl")
    assert report.widths[1] == min(report.widths) < 20


def test_layers_of_different_widths_accept_only_the_uniform_budget(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(0.01)
    first = prune(model, None, calibration=windows, ratio=0.5, multiple_of=2, budget="kl").widths
    with pytest.raises(ValueError, match=rf"expected layers of one width for 'mi', got \[{min(first)}, "):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=1, budget="mi")
    with pytest.raises(
        ValueError,
        match=rf"between 0 and {min(first)} neurons .* got 0 for ratio=0.25 rounded to a multiple of 20",
    ):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=20)
    second = prune(model, None, calibration=windows, ratio=0.25, multiple_of=1)
    assert second.widths == [uniform_width(width, 0.25, 1) for width in first]


def test_pairwise_mi_drops_copies(windows):
    dense = tiny_model("Llama")
    with torch.no_grad():
        for ffn in find_ffns(dense):  # neurons 30 to 39 are copies of 0 to 9
            for linear in ffn.inputs:
                linear.weight[30:] = linear.weight[:10]
    error = {}
    for criterion in ("pairwise-mi", "flap"):
        pruned = copy.deepcopy(dense)
        prune(pruned, None, calibration=windows, ratio=0.25, criterion=criterion, multiple_of=2)
        error[criterion] = (outputs(pruned, windows) - outputs(dense, windows)).square().mean()
    assert error["pairwise-mi"] < 0.5 * error["flap"]


def test_equal_seeds_give_equal_models_bit_for_bit(windows):
    models = [tiny_model("Llama") for _ in range(2)]
    for model in models:
        prune(model, None, calibration=windows, ratio=0.25, criterion="random-pairs", multiple_of=2, seed=3)
    for one, other in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(one, other)


def test_the_report_explains_each_dropped_neuron(llama, windows):
    dense = copy.deepcopy(llama)
    report = prune(llama, None, calibration=windows, ratio=0.25, multiple_of=2)
    captured = []
    handle = (
        find_ffns(dense)[0]
        .output.owners[0]
        .register_forward_pre_hook(lambda _m, a: captured.append(a[0].flatten(0, 1)))
    )
    outputs(dense, windows)
    handle.remove()
    mi = mikernels.mutual_information(captured[0])
    layer = report.layers[0]
    for i, neuron in enumerate(layer.dropped.tolist()):
        assert int(layer.partner[i]) in layer.kept.tolist()
        # The tokens are in another order than in the measured sample, which changes the 8-bit rounding.
        assert abs(layer.mi[i] - mi[neuron, layer.kept].max()) < 2e-3
        assert 0 <= layer.linear_r2[i] <= 1


def test_the_manifest_is_json_with_one_entry_per_dropped_neuron(llama, windows):
    report = prune(llama, None, calibration=windows, ratio=0.25, multiple_of=2, seed=5)
    manifest = json.loads(report.manifest())
    assert manifest["settings"]["seed"] == 5
    assert manifest["neurons"] == {"before": 120, "after": 90, "widths": [30, 30, 30]}
    assert manifest["calibration_tokens"] == windows.numel()
    for entry in manifest["layers"]:
        assert len(entry["kept"]) == 30
        assert {len(column) for column in entry["dropped"].values()} == {10}


def test_calibration_accepts_text_a_file_or_tokens(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    common = {"ratio": 0.25, "multiple_of": 2, "sequence_length": 32, "calibration_tokens": 1024}
    kept = []
    for calibration in (TEXT, path, torch.tensor(tokenizer(TEXT)["input_ids"]).view(-1, 32)):
        report = prune(tiny_model("Llama"), tokenizer, calibration=calibration, **common)
        assert report.calibration_tokens == 1024
        kept.append([layer.kept.tolist() for layer in report.layers])
    assert kept[0] == kept[1] == kept[2]


def test_the_default_calibration_is_the_builtin_text(tokenizer):
    report = prune(
        tiny_model("Bert"), tokenizer, ratio=0.25, multiple_of=2, sequence_length=32, calibration_tokens=2048
    )
    assert report.calibration_tokens == 2048


def test_a_null_threshold_drops_the_same_neurons_as_its_value_in_nats(windows):
    options = {"ratio": 0.25, "multiple_of": 2, "criterion": "random-pairs", "sample_size": 128}
    nats = null_threshold("null:0.9", torch.randn(128, 2), estimator="grid", nodes=16)
    dropped = []
    for threshold in ("null:0.9", nats):
        report = prune(tiny_model("Llama"), None, calibration=windows, threshold=threshold, **options)
        dropped.append([layer.dropped.tolist() for layer in report.layers])
    assert dropped[0] == dropped[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio: expected a number between 0 and 1"),
        ({"ratio": 1.0}, "ratio: expected a number between 0 and 1"),
        ({"ratio": float("nan")}, "ratio: expected a number between 0 and 1"),
        ({"ratio": 0.01, "multiple_of": 8}, "got 40 for ratio=0.01 rounded to a multiple of 8"),
        ({"ratio": 0.99, "multiple_of": 32}, "got 0 for ratio=0.99 rounded to a multiple of 32"),
        ({"criterion": "best"}, "criterion: expected one of conditional-mi"),
        ({"repair": "hope"}, "repair: expected one of auto, none, bias, lstsq, sequential, got 'hope'"),
        ({"threshold": 0.1}, "threshold: expected criterion='random-pairs' with it, got 'conditional-mi'"),
        (
            {"clusters": 2},
            "clusters: expected criterion='random-pairs' with it",
        ),
        ({"criterion": "random-pairs", "clusters": 0}, "clusters: expected a positive integer, got 0"),
        ({"criterion": "random-pairs", "clusters": 41}, "at most the 40 neurons of a layer, got 41"),
        (
            {"criterion": "random-pairs", "clusters": 40},
            "expected pairs within 40 clusters .* got pairs for 0",
        ),
        ({"candidates": 2}, "candidates: expected criterion='random-pairs' with it"),
        ({"criterion": "random-pairs", "candidates": 0}, "candidates: expected a positive integer, got 0"),
        ({"criterion": "random-pairs", "threshold": 50.0}, "expected pairs above 50 nats .* got pairs for 0"),
        ({"criterion": "random-pairs", "threshold": "null:2"}, "threshold: expected nats or 'null:q'"),
        ({"budget": "mine"}, "budget: expected one of uniform, mi, kl, got 'mine'"),
        ({"budget": "mi", "ratio": 0.5, "max_layer_ratio": 0.3}, "lose the 20 neurons of ratio=0.5, got 12"),
        ({"max_layer_ratio": 1.5}, "max_layer_ratio: expected a number between 0 and 1"),
        ({"max_layer_ratio": 0.3}, "max_layer_ratio: expected budget='mi' or 'kl' with it, got 'uniform'"),
        ({"estimator": "kde", "nodes": 32}, "nodes: expected estimator='grid' with it, got 'kde'"),
        ({"refine": True, "repair": "lstsq"}, "refine: expected repair='sequential' with it, got 'lstsq'"),
        ({"sample_size": 4}, "sample_size: expected at least 8 tokens, got 4"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"calibration": torch.randn(4, 4)}, "expected windows of token ids"),
        (
            {"calibration": torch.ones(2, 65).long()},
            "sequence_length: expected at most the 64 positions .* got 65",
        ),
        ({"calibration": "some text"}, "tokenizer: expected one for calibration text, got None"),
    ],
)
def test_bad_options_are_an_error_and_leave_the_model_unchanged(llama, windows, options, message):
    before = state_of(llama)
    with pytest.raises(ValueError, match=message):
        prune(llama, None, **({"calibration": windows, "ratio": 0.25, "multiple_of": 2} | options))
    assert llama.config.intermediate_size == 40
    assert_unchanged(llama, before)


def test_keywords_override_settings(llama, windows):
    report = prune(llama, None, calibration=windows, settings=Settings(ratio=0.25, multiple_of=2), ratio=0.5)
    assert (report.widths, report.settings["multiple_of"]) == ([20, 20, 20], 2)
    with pytest.raises(TypeError, match="rate"):
        prune(llama, None, calibration=windows, settings=Settings(), rate=0.5)


def test_too_few_calibration_tokens_for_least_squares_give_a_warning(llama, windows):
    with pytest.warns(UserWarning, match="4 tokens for each of the 30 kept neurons .* got 96 tokens"):
        prune(llama, None, calibration=windows[:6], ratio=0.25, multiple_of=2)


def test_the_name_of_a_file_passed_as_text_is_an_error(llama, tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    with pytest.raises(ValueError, match="expected text, got the name of a file"):
        prune(llama, tokenizer, calibration=str(path), multiple_of=2)


def test_bias_repair_of_a_class_that_cannot_store_a_bias_is_an_error(windows):
    with pytest.raises(ValueError, match="for Qwen2ForCausalLM, which cannot store a bias"):
        prune(tiny_model("Qwen2"), None, calibration=windows, ratio=0.25, repair="bias", multiple_of=2)


def test_text_shorter_than_a_window_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="text: expected at least 512 tokens, got 5"):
        prune(tiny_model("Llama"), tokenizer, calibration="hello", multiple_of=2)


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "expected"),
    [(1536, 0.2, 32, 1216), (11008, 0.2, 128, 8832), (100, 0.5, 1, 50), (64, 0.4, 32, 32)],
)
def test_the_width_is_rounded_to_the_nearest_multiple(width, ratio, multiple, expected):
    assert uniform_width(width, ratio, multiple) == expected


@pytest.mark.parametrize("repair", ["lstsq", "sequential"])
def test_a_model_in_float64_is_repaired_like_one_in_float32(llama, windows, repair):
    options = {"calibration": windows, "multiple_of": 2, "repair": repair}
    double = copy.deepcopy(llama).double()
    prune(llama, None, **options)
    prune(double, None, **options)
    assert double.dtype is torch.float64
    torch.testing.assert_close(
        outputs(double, windows).float(), outputs(llama, windows), rtol=1e-3, atol=1e-3
    )
