import copy
import gc
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import mikernels
from pruning import Settings, prune
from pruning.choose.evidence import gather_evidence, measure_ffn
from pruning.choose.evidence_file import load_evidence
from pruning.choose.origin import model_fingerprint
from pruning.model.ffn import find_ffns

from tiny import outputs, tiny, tiny_model

OPTIONS = {"multiple_of": 2, "sample_size": 128}


def load(path, model):
    return load_evidence(path, find_ffns(model), estimator="grid on 16 nodes", model=model_fingerprint(model))


@pytest.fixture
def saved(tmp_path, windows):
    path = tmp_path / "statistics.safetensors"
    prune(tiny_model("Llama"), None, calibration=windows, save_statistics=path, **OPTIONS)
    return path


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("criterion", ["conditional-mi", "pairwise-mi", "flap"])
def test_saved_statistics_serve_any_ratio_and_give_the_same_model(saved, windows, ratio, criterion):
    results = []
    for source in ({"statistics": saved}, {"calibration": windows}):
        model = tiny_model("Llama")
        prune(model, None, ratio=ratio, criterion=criterion, repair="lstsq", **source, **OPTIONS)
        results.append(outputs(model, windows))
    assert torch.equal(*results)


def test_the_settings_of_a_result_from_statistics_are_those_that_they_were_measured_with(tmp_path, windows):
    path = tmp_path / "statistics.safetensors"
    measured = {"calibration_tokens": 500, "sequence_length": 48, "bos": False, "sample_size": 96}
    first = tiny_model("Llama")
    prune(first, None, calibration=windows, save_statistics=path, multiple_of=2, **measured)
    report = prune(tiny_model("Llama"), None, statistics=path, repair="lstsq", multiple_of=2)
    assert {name: report.settings[name] for name in measured} == measured


@pytest.mark.parametrize("options", [{}, {"repair": "lstsq", "budget": "kl"}])
def test_saved_statistics_hold_the_tokens_that_a_later_run_needs(saved, tmp_path, windows, options):
    again = tmp_path / "again.safetensors"
    prune(tiny_model("Llama"), None, statistics=saved, save_statistics=again, repair="lstsq", **OPTIONS)
    results = []
    for source in ({"statistics": again}, {"calibration": windows}):
        model = tiny_model("Llama")
        prune(model, None, ratio=0.25, **options, **source, **OPTIONS)
        results.append(outputs(model, windows))
    assert torch.equal(*results)


def test_statistics_of_inputs_by_name_ask_for_them_again(tmp_path):
    path, batches = tmp_path / "statistics.safetensors", [{"pixel_values": torch.randn(9, 3, 16, 16)}]
    options = OPTIONS | {"sample_size": 8, "ratio": 0.5, "repair": "lstsq"}
    prune(tiny("ViTModel"), None, calibration=batches, save_statistics=path, **options)
    prune(tiny("ViTModel"), None, statistics=path, **options)
    with pytest.raises(ValueError, match="which it does not hold, got none; name the calibration"):
        prune(tiny("ViTModel"), None, statistics=path, **options | {"budget": "kl"})


def test_least_squares_with_saved_statistics_runs_no_forward_pass(saved):
    model = tiny_model("Llama")
    model.model.forward = None
    report = prune(model, None, ratio=0.25, repair="lstsq", budget="mi", statistics=saved, **OPTIONS)
    assert report.calibration_tokens == 24 * 16


def test_a_saved_kl_budget_needs_neither_text_nor_forward_pass(tmp_path, windows):
    path, options = tmp_path / "statistics.safetensors", {"ratio": 0.25, "repair": "lstsq", "budget": "kl"}
    measured, model = tiny_model("Llama"), tiny_model("Llama")
    first = prune(measured, None, calibration=windows, save_statistics=path, **options, **OPTIONS)
    model.model.forward = None
    second = prune(model, None, statistics=path, **options, **OPTIONS)
    del model.model.forward
    assert [layer.sensitivity for layer in second.layers] == [layer.sensitivity for layer in first.layers]
    assert torch.equal(outputs(model, windows), outputs(measured, windows))


def test_a_missing_kl_divergence_is_measured_and_saved(saved, tmp_path, windows):
    path = tmp_path / "more.safetensors"
    assert [layer.divergence for layer in load(saved, tiny_model("Llama"))] == [None] * 3
    options = {"calibration": windows, "budget": "kl", "repair": "lstsq"}
    report = prune(tiny_model("Llama"), None, statistics=saved, save_statistics=path, **options, **OPTIONS)
    assert "capture" not in report.seconds
    expected = [layer.sensitivity for layer in report.layers]
    assert [layer.divergence**0.5 for layer in load(path, tiny_model("Llama"))] == expected
    assert set(load_file(saved)) < set(load_file(path))


def test_statistics_of_another_model_are_an_error(saved):
    with pytest.raises(ValueError, match=r"expected statistics of 44 neurons of .*, got 40"):
        load(saved, tiny_model("Llama", width=44))
    with pytest.raises(ValueError, match="got none; the file belongs to another model"):
        load(saved, tiny_model("Bert"))


def test_statistics_of_another_estimator_are_an_error(saved):
    for asked in ({"estimator": "kde"}, {"nodes": 8}):
        with pytest.raises(ValueError, match=r"expected statistics measured with .*, got grid on 16 nodes"):
            prune(tiny_model("Llama"), None, statistics=saved, repair="lstsq", **asked, **OPTIONS)


def test_a_missing_output_folder_is_an_error_before_anything_is_captured(windows, tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.pipeline.gather_evidence", None)
    path = tmp_path / "absent" / "statistics"
    with pytest.raises(
        FileNotFoundError, match=r"save_statistics: expected an existing folder, got .*absent"
    ):
        prune(tiny_model("Llama"), None, calibration=windows, save_statistics=path, **OPTIONS)


def test_a_disk_without_space_for_all_layers_is_an_error_before_anything_is_captured(
    llama, windows, monkeypatch
):
    disk, needed = shutil.disk_usage("/"), 3 * 40 * 40 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: disk._replace(free=needed - 1))
    with monkeypatch.context() as patch:
        patch.setattr("pruning.pipeline.gather_evidence", lambda *_args, **_options: iter(()))
        with pytest.raises(
            OSError, match=r"free disk space for what is measured of all layers, got .*; set TMPDIR"
        ):
            prune(llama, None, calibration=windows, budget="mi", multiple_of=4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: disk._replace(free=needed))
    prune(llama, None, calibration=windows, budget="mi", multiple_of=4)


def test_the_error_for_a_missing_or_wrong_file_names_it(tmp_path, llama):
    with pytest.raises(FileNotFoundError, match="absent: no such statistics file"):
        load(tmp_path / "absent", llama)
    (tmp_path / "text").write_text("words")
    with pytest.raises(ValueError, match="expected statistics in safetensors"):
        load(tmp_path / "text", llama)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repair": "lstsq"},
        {"budget": "mi"},
        {"save_statistics": "saved"},
        {"budget": "kl", "repair": "lstsq"},
    ],
)
def test_only_the_evidence_of_one_layer_is_in_memory_at_a_time(windows, monkeypatch, tmp_path, options):
    measured, peak = [], []
    monkeypatch.setattr("pruning.choose.picture.SHOWN", 24)  # maps smaller than a layer, as of large models

    gc.collect()
    gc.freeze()  # what was there before is not looked at

    def alive():
        gc.collect()
        matrices = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (40, 40)]
        return len({t.untyped_storage().data_ptr() for t in matrices})

    def measure(*args, **keywords):
        assert not any(mi() is not None for mi in measured)
        evidence = measure_ffn(*args, **keywords)
        measured.append(weakref.ref(evidence.order))
        peak.append(alive())
        return evidence

    monkeypatch.setattr("pruning.layer_by_layer.measure_ffn", measure)
    monkeypatch.setattr("pruning.choose.evidence.measure_ffn", measure)
    if "save_statistics" in options:
        options = {"save_statistics": tmp_path / "saved"}
    try:
        prune(tiny_model("Llama"), None, calibration=windows, **options, **OPTIONS)
    finally:
        gc.unfreeze()
    assert len(measured) == 3
    assert max(peak) <= 3  # MI, covariance and what they were made from


def test_layer_by_layer_and_all_layers_at_once_give_the_same_result(model, windows, tmp_path):
    other = copy.deepcopy(model)
    one = prune(model, None, calibration=windows, **OPTIONS)
    many = prune(other, None, calibration=windows, save_statistics=tmp_path / "saved", **OPTIONS)
    assert torch.equal(outputs(model, windows), outputs(other, windows))
    for first, second in zip(one.layers, many.layers, strict=True):
        torch.testing.assert_close(first.mi, second.mi, rtol=0, atol=1e-4)  # of other sets of pairs
        assert first.median_mi == pytest.approx(second.median_mi, abs=1e-4)
        same = {"mi": first.mi, "median_mi": first.median_mi}
        assert first.as_json() == replace(second, **same).as_json()
    assert one.calibration_tokens == many.calibration_tokens


@pytest.mark.parametrize(
    "options", [{}, {"repair": "lstsq"}, {"criterion": "flap"}, {"criterion": "random-pairs"}]
)
def test_only_pairs_of_a_dropped_and_a_kept_neuron_are_measured_unless_all_decide(
    windows, monkeypatch, options
):
    shapes, estimate = [], mikernels.mutual_information
    monkeypatch.setattr("pruning.choose.picture.SHOWN", 24)

    def recorded(x, y=None, **keywords):
        shapes.append((x.shape[1], None if y is None else y.shape[1]))
        return estimate(x, y, **keywords)

    monkeypatch.setattr(mikernels, "mutual_information", recorded)
    report = prune(tiny_model("Llama"), None, calibration=windows, ratio=0.25, **options, **OPTIONS)
    # Beside them, those of the map in the report.
    expected = [(40, None)] if options == {"criterion": "random-pairs"} else [(10, 30), (24, 24)]
    assert shapes == expected * len(report.layers)


def test_gathered_evidence_is_what_a_run_saves(saved, windows):
    model, settings = tiny_model("Llama"), Settings(**OPTIONS)
    ffns, seconds = find_ffns(model), {}
    gathered = list(
        gather_evidence(model, ffns, windows.split(settings.batch_size), settings, seconds=seconds)
    )
    for layer, expected in zip(gathered, load(saved, tiny_model("Llama")), strict=True):
        assert layer.statistics.n_tokens == expected.statistics.n_tokens
        for name in ("mi", "order", "damage"):
            assert torch.equal(getattr(layer, name), getattr(expected, name))
    assert list(seconds) == ["capture", "measure"]


def test_the_error_for_activations_that_cannot_be_measured_names_the_layer(llama, windows):
    settings = Settings(sample_size=8)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp: "):
        next(gather_evidence(llama, find_ffns(llama), [windows[:1, :4]], settings))
