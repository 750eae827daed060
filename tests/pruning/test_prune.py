import copy
import json
from typing import get_args

import pytest
import torch

import mikernels
from pruning import Settings, prune
from pruning.choose.budget import Budget, uniform_width
from pruning.model.families import find_ffns
from pruning.repair.closed_form import Repair
from pruning.settings import Criterion
from pruning.threshold import null_threshold

from tiny import FAMILIES, outputs, tiny_model

TEXT = ("The quick brown fox jumps over the lazy dog. " * 60)[:1024]


@pytest.mark.parametrize("criterion", get_args(Criterion))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_criterion_prunes_every_family(family, criterion, windows):
    model = tiny_model(family)
    report = prune(model, None, calibration=windows, ratio=0.25, criterion=criterion, multiple_of=2)
    assert [ffn.width for ffn in find_ffns(model)] == [30, 30, 30]
    assert torch.isfinite(outputs(model, windows)).all()
    for layer in report.layers:
        assert sorted(layer.kept.tolist() + layer.dropped.tolist()) == list(range(40))


@pytest.mark.parametrize("budget", get_args(Budget))
@pytest.mark.parametrize("repair", [r for r in get_args(Repair) if r != "bias"])
def test_every_budget_goes_with_every_repair(model, repair, budget, windows):
    report = prune(
        model,
        None,
        calibration=windows,
        ratio=0.25,
        multiple_of=2,
        repair=repair,
        budget=budget,
        sample_size=128,
    )
    widths = [ffn.width for ffn in find_ffns(model)]
    assert widths == report.widths
    assert sum(widths) == 90
    assert budget != "uniform" or widths == [30, 30, 30]
    assert torch.isfinite(outputs(model, windows)).all()


def test_a_budget_gives_more_to_the_layer_that_the_model_minds(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(0.01)  # whose FFN hardly matters
    report = prune(model, None, calibration=windows, ratio=0.5, multiple_of=2, budget="kl")
    assert report.widths[1] == min(report.widths) < 20


def test_layers_of_different_widths_can_lose_the_same_share_but_have_no_budget(windows):
    model = tiny_model("Llama")
    with torch.no_grad():
        find_ffns(model)[1].output.weight.mul_(0.01)
    first = prune(model, None, calibration=windows, ratio=0.5, multiple_of=2, budget="kl").widths
    with pytest.raises(ValueError, match=rf"expects layers of one width, got \[{min(first)}, "):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=1, budget="mi")
    with pytest.raises(ValueError, match=rf"of {min(first)} neurons, rounded to a multiple of 20, keeps 0"):
        prune(model, None, calibration=windows, ratio=0.25, multiple_of=20)
    second = prune(model, None, calibration=windows, ratio=0.25, multiple_of=1)
    assert second.widths == [uniform_width(width, 0.25, 1) for width in first]


def test_repair_brings_the_model_closer_to_the_dense_one(model, windows):
    dense = outputs(model, windows)
    distance = {}
    for repair in ("none", "lstsq", "sequential"):
        pruned = copy.deepcopy(model)
        prune(pruned, None, calibration=windows, ratio=0.25, repair=repair, multiple_of=2)
        distance[repair] = (outputs(pruned, windows) - dense).square().mean()
    assert max(distance["sequential"], distance["lstsq"]) < distance["none"]


def test_copies_are_dropped_for_the_mutual_information_that_they_share(windows):
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


def test_same_seed_gives_the_same_model_bit_for_bit(windows):
    models = [tiny_model("Llama") for _ in range(2)]
    for model in models:
        prune(model, None, calibration=windows, ratio=0.25, criterion="random-pairs", multiple_of=2, seed=3)
    for one, other in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(one, other)


def test_report_gives_the_reason_for_each_dropped_neuron(llama, windows):
    dense = copy.deepcopy(llama)
    report = prune(llama, None, calibration=windows, ratio=0.25, multiple_of=2)
    captured = []
    handle = find_ffns(dense)[0].output.register_forward_pre_hook(
        lambda _m, a: captured.append(a[0].flatten(0, 1))
    )
    outputs(dense, windows)
    handle.remove()
    mi = mikernels.mutual_information(captured[0])
    layer = report.layers[0]
    for i, neuron in enumerate(layer.dropped.tolist()):
        assert int(layer.partner[i]) in layer.kept.tolist()
        # The order of the samples differs from the sample that was measured, and so do 8-bit roundings.
        assert abs(layer.mi[i] - mi[neuron, layer.kept].max()) < 2e-3
        assert 0 <= layer.linear_r2[i] <= 1


def test_manifest_is_json_with_one_entry_per_dropped_neuron(llama, windows):
    report = prune(llama, None, calibration=windows, ratio=0.25, multiple_of=2, seed=5)
    manifest = json.loads(report.manifest())
    assert manifest["settings"]["seed"] == 5
    assert manifest["neurons"] == {"before": 120, "after": 90, "widths": [30, 30, 30]}
    assert manifest["calibration_tokens"] == windows.numel()
    for entry in manifest["layers"]:
        assert len(entry["kept"]) == 30
        assert {len(column) for column in entry["dropped"].values()} == {10}


def test_calibration_comes_as_text_file_or_tokens(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    common = {"ratio": 0.25, "multiple_of": 2, "sequence_length": 32, "calibration_tokens": 1024}
    kept = []
    for calibration in (TEXT, path, torch.tensor(tokenizer(TEXT)["input_ids"]).view(-1, 32)):
        report = prune(tiny_model("Llama"), tokenizer, calibration=calibration, **common)
        assert report.calibration_tokens == 1024
        kept.append([layer.kept.tolist() for layer in report.layers])
    assert kept[0] == kept[1] == kept[2]


def test_without_calibration_the_text_inside_python_is_used(tokenizer):
    report = prune(
        tiny_model("Bert"), tokenizer, ratio=0.25, multiple_of=2, sequence_length=32, calibration_tokens=2048
    )
    assert report.calibration_tokens == 2048


def test_threshold_by_the_null(windows):
    """`"null:q"` drops what the same number of nats drops."""
    options = {"ratio": 0.25, "multiple_of": 2, "criterion": "random-pairs", "sample_size": 128}
    nats = null_threshold("null:0.9", 128, estimator="grid", nodes=16)
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
        ({"ratio": 0.01, "multiple_of": 8}, "rounded to a multiple of 8, keeps 40"),
        ({"ratio": 0.99, "multiple_of": 32}, "rounded to a multiple of 32, keeps 0"),
        ({"criterion": "best"}, "criterion: expected one of conditional-mi"),
        ({"repair": "hope"}, "repair: expected one of none, bias, lstsq, sequential, got 'hope'"),
        ({"threshold": 0.1}, "threshold: expected only with criterion='random-pairs'"),
        (
            {"clusters": 2},
            "clusters: expected only with criterion='random-pairs', got it with 'conditional-mi'",
        ),
        ({"criterion": "random-pairs", "clusters": 0}, "clusters: expected a positive integer, got 0"),
        ({"criterion": "random-pairs", "clusters": 41}, "at most the 40 neurons of a layer, got 41"),
        ({"criterion": "random-pairs", "clusters": 40}, "there are pairs within 40 clusters for 0"),
        ({"candidates": 2}, "candidates: expected only with criterion='random-pairs'"),
        ({"criterion": "random-pairs", "candidates": 0}, "candidates: expected a positive integer, got 0"),
        ({"criterion": "random-pairs", "threshold": 50.0}, "above 50 nats there are pairs for 0"),
        ({"criterion": "random-pairs", "threshold": "null:2"}, "threshold: expected nats or 'null:q'"),
        ({"budget": "mine"}, "budget: expected one of uniform, mi, kl, got 'mine'"),
        ({"budget": "mi", "ratio": 0.5, "max_layer_ratio": 0.3}, "lets 12 of a layer go.* at least the 20"),
        ({"max_layer_ratio": 1.5}, "max_layer_ratio: expected a number between 0 and 1"),
        ({"refine": True, "repair": "lstsq"}, "refine: expected only with repair='sequential'"),
        ({"sample_size": 4}, "sample_size: expected at least 8 tokens, got 4"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"calibration": torch.randn(4, 4)}, "expected windows of token ids"),
        (
            {"calibration": torch.ones(2, 65).long()},
            "sequence_length: expected at most the 64 tokens .* got 65",
        ),
        ({"calibration": "some text"}, "tokenizer: expected one for calibration text, got None"),
    ],
)
def test_bad_settings_are_refused_and_leave_the_model_as_it_was(llama, windows, options, message):
    before = copy.deepcopy(llama.state_dict())
    with pytest.raises(ValueError, match=message):
        prune(llama, None, **({"calibration": windows, "ratio": 0.25, "multiple_of": 2} | options))
    assert llama.config.intermediate_size == 40
    for name, value in llama.state_dict().items():
        assert torch.equal(value, before[name])


def test_keywords_have_the_last_word_over_settings(llama, windows):
    report = prune(llama, None, calibration=windows, settings=Settings(ratio=0.25, multiple_of=2), ratio=0.5)
    assert (report.widths, report.settings["multiple_of"]) == ([20, 20, 20], 2)
    with pytest.raises(TypeError, match="rate"):
        prune(llama, None, calibration=windows, settings=Settings(), rate=0.5)


def test_few_calibration_tokens_for_least_squares_are_warned_about(llama, windows):
    with pytest.warns(UserWarning, match="96 tokens for 30 kept neurons"):
        prune(llama, None, calibration=windows[:6], ratio=0.25, multiple_of=2)


def test_name_of_a_file_passed_as_text_is_noticed(llama, tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    with pytest.raises(ValueError, match="expected text, got the name of a file"):
        prune(llama, tokenizer, calibration=str(path), multiple_of=2)


def test_bias_repair_is_refused_where_the_class_cannot_store_it(windows):
    with pytest.raises(ValueError, match="Qwen2ForCausalLM cannot store a bias"):
        prune(tiny_model("Qwen2"), None, calibration=windows, ratio=0.25, repair="bias", multiple_of=2)


def test_text_shorter_than_a_window_is_refused(tokenizer):
    with pytest.raises(ValueError, match="expected text of at least 512 tokens, got 5"):
        prune(tiny_model("Llama"), tokenizer, calibration="hello", multiple_of=2)


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "expected"),
    [(1536, 0.2, 32, 1216), (11008, 0.2, 128, 8832), (100, 0.5, 1, 50), (64, 0.4, 32, 32)],
)
def test_width_is_rounded_to_the_nearest_multiple(width, ratio, multiple, expected):
    assert uniform_width(width, ratio, multiple) == expected
