import copy
import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file

from pruning import prune
from pruning.choose.evidence import Evidence, load_evidence, measure
from pruning.model.families import find_ffns
from pruning.observe.capture import Statistics

from tiny import outputs, tiny_model

OPTIONS = {"multiple_of": 2, "sample_size": 128}
GRID = {"estimator": "grid", "nodes": 16}


@pytest.fixture
def kept(tmp_path, windows):
    path = tmp_path / "statistics.safetensors"
    prune(tiny_model("Llama"), None, calibration=windows, save_statistics=path, **OPTIONS)
    return path


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("criterion", ["conditional-mi", "pairwise-mi", "flap"])
def test_kept_statistics_serve_any_ratio_and_give_the_same_model(kept, windows, ratio, criterion):
    results = []
    for source in ({"statistics": kept}, {"calibration": windows}):
        model = tiny_model("Llama")
        prune(model, None, ratio=ratio, criterion=criterion, repair="lstsq", **source, **OPTIONS)
        results.append(outputs(model, windows))
    assert torch.equal(*results)


def test_with_kept_statistics_least_squares_runs_no_forward_pass(kept):
    model = tiny_model("Llama")
    model.model.forward = None
    report = prune(model, None, ratio=0.25, repair="lstsq", budget="mi", statistics=kept, **OPTIONS)
    assert report.calibration_tokens == 24 * 16


def test_a_budget_by_kl_is_kept_and_then_needs_neither_text_nor_forward_pass(tmp_path, windows):
    path, options = tmp_path / "statistics.safetensors", {"ratio": 0.25, "repair": "lstsq", "budget": "kl"}
    measured, model = tiny_model("Llama"), tiny_model("Llama")
    first = prune(measured, None, calibration=windows, save_statistics=path, **options, **OPTIONS)
    model.model.forward = None
    second = prune(model, None, statistics=path, **options, **OPTIONS)
    del model.model.forward
    assert [layer.sensitivity for layer in second.layers] == [layer.sensitivity for layer in first.layers]
    assert torch.equal(outputs(model, windows), outputs(measured, windows))


def test_what_a_file_lacks_for_a_budget_by_kl_is_measured_and_kept_from_then_on(kept, tmp_path, windows):
    path, ffns = tmp_path / "more.safetensors", find_ffns(tiny_model("Llama"))
    assert [known.divergence for known in load_evidence(kept, ffns, **GRID)] == [None] * 3
    options = {"calibration": windows, "budget": "kl", "repair": "lstsq"}
    report = prune(tiny_model("Llama"), None, statistics=kept, save_statistics=path, **options, **OPTIONS)
    assert "capture" not in report.seconds
    expected = [layer.sensitivity for layer in report.layers]
    assert [known.divergence**0.5 for known in load_evidence(path, ffns, **GRID)] == expected
    assert set(load_file(kept)) < set(load_file(path))


def test_statistics_of_another_model_are_refused(kept):
    with pytest.raises(ValueError, match=r"expected statistics of 44 neurons of .*, found 40"):
        load_evidence(kept, find_ffns(tiny_model("Llama", width=44)), **GRID)
    with pytest.raises(ValueError, match="found none; it was made for another model"):
        load_evidence(kept, find_ffns(tiny_model("Bert")), **GRID)


def test_statistics_of_another_estimator_are_refused(kept):
    for asked in ({"estimator": "kde"}, {"nodes": 8}):
        with pytest.raises(ValueError, match=r"expected statistics measured with .*, found grid on 16 nodes"):
            prune(tiny_model("Llama"), None, statistics=kept, repair="lstsq", **asked, **OPTIONS)


def test_a_folder_that_is_missing_is_found_out_before_anything_is_captured(windows, tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.pipeline.capture", None)
    path = tmp_path / "absent" / "kept"
    with pytest.raises(
        FileNotFoundError, match=r"save_statistics: expected an existing folder, got .*absent"
    ):
        prune(tiny_model("Llama"), None, calibration=windows, save_statistics=path, **OPTIONS)


def test_a_file_that_is_missing_or_of_another_kind_is_named(tmp_path):
    ffns = find_ffns(tiny_model("Llama"))
    with pytest.raises(FileNotFoundError, match="no such file of statistics"):
        load_evidence(tmp_path / "absent", ffns, **GRID)
    (tmp_path / "text").write_text("words")
    with pytest.raises(ValueError, match="expected statistics in safetensors"):
        load_evidence(tmp_path / "text", ffns, **GRID)


def test_evidence_is_let_go_before_sequential_repair_asks_for_memory(windows, monkeypatch):
    def alive():
        gc.collect()
        return sum(type(thing) in (Evidence, Statistics) for thing in gc.get_objects())

    before, then = alive(), []
    monkeypatch.setattr(
        "pruning.pipeline.repair_in_sequence", lambda *_args, **_options: then.append(alive())
    )
    prune(tiny_model("Llama"), None, calibration=windows, budget="mi", **OPTIONS)
    assert then == [before]


def test_under_the_uniform_budget_one_layer_is_known_at_a_time(windows, monkeypatch):
    known = []

    def measured(*args, **options):
        gc.collect()
        assert not any(layer() for layer in known)
        evidence = measure(*args, **options)
        known.append(weakref.ref(evidence.mi))
        return evidence

    monkeypatch.setattr("pruning.pipeline.measure", measured)
    prune(tiny_model("Llama"), None, calibration=windows, **OPTIONS)
    assert len(known) == 3


def test_layer_by_layer_gives_what_all_layers_at_once_give(model, windows, tmp_path):
    other = copy.deepcopy(model)
    one = prune(model, None, calibration=windows, **OPTIONS)
    many = prune(other, None, calibration=windows, save_statistics=tmp_path / "kept", **OPTIONS)
    assert torch.equal(outputs(model, windows), outputs(other, windows))
    for first, second in zip(one.layers, many.layers, strict=True):
        assert first.as_json() == second.as_json()
    assert one.calibration_tokens == many.calibration_tokens
