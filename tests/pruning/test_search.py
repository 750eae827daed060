"""Budgets by search: each candidate is compared whole, and only better ones are taken."""

import json

import pytest
import torch

from pruning import Settings, prune, sweep
from pruning.model.ffn import find_ffns

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
def test_what_the_search_reports_is_the_divergence_of_the_models(windows, criterion):
    options, dense = OPTIONS | {"criterion": criterion}, uneven_model()
    uniform, searched = uneven_model(), uneven_model()
    prune(uniform, None, calibration=windows, **options)
    found = prune(searched, None, calibration=windows, budget="search", **options).notes["search"]
    assert found["divergences"][0] == pytest.approx(divergence(dense, uniform, windows), rel=1e-3)
    assert found["divergences"][-1] == pytest.approx(divergence(dense, searched, windows), rel=1e-3)
    assert found["divergences"] == sorted(found["divergences"], reverse=True)
    assert len(found["divergences"]) > 1  # here it does find something better


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
    monkeypatch.setattr("pruning.observe.divergence.DenseOutputs.divergence", lambda _self: float("inf"))
    with pytest.raises(ValueError, match="budget: expected finite outputs of the model with"):
        prune(model, None, calibration=windows, budget="search", **OPTIONS)
    assert torch.equal(outputs(model, windows), before)


def test_the_manifest_says_what_the_search_found(windows):
    report = prune(uneven_model(), None, calibration=windows, budget="search", **OPTIONS)
    manifest = json.loads(report.manifest())
    assert manifest["search"] == report.notes["search"]
    layers = len(report.layers)
    assert manifest["search"]["candidates"] >= len(manifest["search"]["divergences"]) + layers
    assert "search" in manifest["seconds"]
