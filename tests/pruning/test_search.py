"""Budgets by search: each candidate is compared whole, and only better ones are taken."""

import json

import pytest
import torch

from pruning import Settings, prune, sweep
from pruning.model.ffn import find_ffns
from pruning.observe.batches import Windows
from pruning.observe.calibration import separate_batches

from tiny import outputs, tiny_model, tiny_tokenizer

OPTIONS = {"multiple_of": 2, "sample_size": 64, "ratio": 0.5, "repair": "lstsq"}


def uneven_model():
    """A model whose middle layer does most: its FFN adds far more than the others."""
    model = tiny_model("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(8)
    return model


def divergence(dense, pruned, windows):
    """KL(dense || pruned) of the next token in nats, from its definition, in float64."""
    with torch.no_grad():
        p, q = (m(input_ids=windows).logits.double().softmax(-1) for m in (dense, pruned))
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("criterion", ["conditional-mi", "flap", "random"])
def test_the_divergences_are_those_of_the_models_on_the_tokens_that_judge(windows, criterion):
    options, dense = OPTIONS | {"criterion": criterion}, uneven_model()
    first, searched = uneven_model(), uneven_model()
    prune(first, None, calibration=windows, budget="kl", **options)
    found = prune(searched, None, calibration=windows, budget="search", **options).notes["search"]
    judged = windows[::2]
    assert found["divergences"][0] == pytest.approx(divergence(dense, first, judged), rel=1e-3)
    assert found["divergences"][-1] == pytest.approx(divergence(dense, searched, judged), rel=1e-3)
    assert found["divergences"] == sorted(found["divergences"], reverse=True)
    assert (found["divergences"][-1] < found["divergences"][0]) or criterion != "conditional-mi"


@pytest.mark.parametrize(("n_windows", "n_parts"), [(24, 4), (40, 4), (5, 2), (2, 1), (1, 1)])
def test_no_token_that_judges_is_probed_and_no_two_rounds_share_one(n_windows, n_parts):
    """Windows have 512 tokens; of many about 16,384 tokens are used."""
    windows = Windows(list(torch.arange(n_windows)[:, None].expand(-1, 512)))
    judged, probed = separate_batches(windows, 3, 4)
    parts = [[int(row[0]) for batch in part for row in batch] for part in (judged, *probed)]
    assert len(probed) == n_parts
    seen = [window for part in parts for window in part]
    if n_windows > 1:
        assert len(set(seen)) == len(seen) == min(n_windows, 32)
        assert abs(len(parts[0]) - len(seen) / 2) <= 1
    else:
        assert parts == [[0], [0]]


def test_the_layer_that_does_most_keeps_most_and_the_total_stays(windows):
    model = uneven_model()
    report = prune(model, None, calibration=windows, budget="search", **OPTIONS)
    assert max(report.widths) == report.widths[1]
    assert sum(report.widths) == len(report.widths) * 20
    assert report.layers[1].sensitivity == max(layer.sensitivity for layer in report.layers)
    assert [ffn.width for ffn in find_ffns(model)] == report.widths


def test_no_layer_loses_more_than_the_cap(windows):
    report = prune(
        uneven_model(), None, calibration=windows, budget="search", max_layer_ratio=0.55, **OPTIONS
    )
    assert min(report.widths) >= 0.45 * 40


def test_a_searched_budget_is_the_same_from_saved_statistics_and_in_a_sweep(windows, tmp_path):
    path, models = tmp_path / "statistics.safetensors", [uneven_model(), uneven_model()]
    options = OPTIONS | {"budget": "search"}
    prune(uneven_model(), None, calibration=windows, save_statistics=path, **OPTIONS)
    fresh = prune(models[0], None, calibration=windows, **options)
    again = prune(models[1], None, statistics=path, **options)
    assert again.widths == fresh.widths
    assert torch.equal(*(outputs(model, windows) for model in models))
    settings = Settings(**options)
    _, row = sweep(uneven_model(), tiny_tokenizer(), [0.5], calibration=windows, texts={}, settings=settings)
    assert row.widths == fresh.widths


def test_outputs_that_are_not_finite_are_named_and_leave_the_model_as_it_was(windows, monkeypatch):
    model = uneven_model()
    before = outputs(model, windows)
    answers = iter([1.0, 1.0, 1.0, float("inf")])  # of the three halved layers, and of the first candidate
    monkeypatch.setattr("pruning.observe.divergence.DenseOutputs.divergence", lambda _self: next(answers))
    with pytest.raises(ValueError, match="budget: expected finite outputs of the model with"):
        prune(model, None, calibration=windows, budget="search", **OPTIONS)
    assert torch.equal(outputs(model, windows), before)


def test_the_manifest_says_what_the_search_found(windows):
    report = prune(uneven_model(), None, calibration=windows, budget="search", **OPTIONS)
    manifest = json.loads(report.manifest())
    assert manifest["search"] == report.notes["search"]
    layers = len(report.layers)
    assert len(manifest["search"]["divergences"]) == 5  # at first, and after each round
    assert manifest["search"]["candidates"] >= 1 + 4 * (1 + layers + 1)
    assert "search" in manifest["seconds"]
