import json

import pytest
import torch

from pruning import prune
from pruning.observe.divergence import DenseOutputs

from tiny import assert_unchanged, outputs, state_of, tiny_model

OPTIONS = {"ratio": 0.5, "multiple_of": 2, "criterion": "random-pairs", "sample_size": 128}


@pytest.fixture(scope="module", params=["Llama", "Bert"])
def measured(request, tmp_path_factory, windows):
    """A family, and saved statistics of it, so that a seed only affects the selection."""
    path = tmp_path_factory.mktemp("saved") / "statistics.safetensors"
    options = OPTIONS | {"repair": "none"}
    prune(tiny_model(request.param), None, calibration=windows, save_statistics=path, **options)
    return request.param, {"calibration": windows, "statistics": path}


def prune_with_one_seed(family, windows, source, **options):
    """The pruned model and its divergence from the dense one."""
    model = tiny_model(family)
    dense = DenseOutputs(model, windows.split(4))
    prune(model, None, **source, **OPTIONS, **options)
    return model, dense.divergence()


@pytest.mark.parametrize("repair", ["none", "lstsq"])
def test_the_seed_whose_model_stays_closest_is_used(measured, windows, repair):
    family, source = measured
    models, expected = {}, {}
    for seed in range(5, 9):
        models[seed], expected[seed] = prune_with_one_seed(family, windows, source, repair=repair, seed=seed)
    model = tiny_model(family)
    report = prune(model, None, **source, **OPTIONS, repair=repair, seed=5, candidates=4)
    assert report.candidates == pytest.approx(expected, rel=1e-4)
    best = min(expected, key=expected.get)
    assert torch.equal(outputs(model, windows), outputs(models[best], windows))


def test_sequential_repair_uses_the_seed_that_is_best_with_least_squares(measured, windows):
    family, source = measured
    reports = {
        repair: prune(tiny_model(family), None, **source, **OPTIONS, repair=repair, candidates=3)
        for repair in ("lstsq", "sequential")
    }
    assert reports["sequential"].candidates == reports["lstsq"].candidates
    for one, other in zip(*(report.layers for report in reports.values()), strict=True):
        assert torch.equal(one.kept, other.kept)


def test_the_model_is_unchanged_if_a_candidate_fails(measured, windows, monkeypatch):
    family, source = measured
    model = tiny_model(family)
    before = state_of(model)
    monkeypatch.setattr(DenseOutputs, "divergence", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prune(model, None, **source, **OPTIONS, candidates=2)
    assert_unchanged(model, before)


def test_the_manifest_lists_the_divergence_of_every_seed(windows):
    report = prune(tiny_model("Llama"), None, calibration=windows, **OPTIONS, seed=7, candidates=2)
    found = json.loads(report.manifest())["candidates"]
    assert list(found) == ["7", "8"]
    assert all(value > 0 for value in found.values())


def test_one_candidate_is_not_compared(windows):
    assert prune(tiny_model("Llama"), None, calibration=windows, **OPTIONS).candidates == {}
