"""The benchmark of runs from disk."""

import torch
from safetensors.torch import save_file

from benchmarks.speed.from_disk import mi_prune, same_bits

from tiny import tiny_model, tiny_tokenizer

OPTIONS = ("--calibration-tokens=512", "--sequence-length=32", "--sample-size=128", "--calibration=builtin")


def test_equal_weights_in_other_files_have_the_same_bits(tmp_path):
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    for name in ("one", "other", "changed", "fewer"):
        (tmp_path / name).mkdir()
    save_file(weights, tmp_path / "one" / "model.safetensors")
    for name, value in weights.items():
        save_file({name: value}, tmp_path / "other" / f"{name}.safetensors")
    save_file(
        weights | {"a": weights["a"].nextafter(torch.tensor(9.0))}, tmp_path / "changed" / "x.safetensors"
    )
    save_file({"a": weights["a"]}, tmp_path / "fewer" / "x.safetensors")
    assert same_bits(tmp_path / "one", tmp_path / "other")
    assert not same_bits(tmp_path / "one", tmp_path / "changed")
    assert not same_bits(tmp_path / "one", tmp_path / "fewer")


def test_a_run_is_killed_after_a_layer_and_its_memory_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_model("Llama", num_hidden_layers=24).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = [*OPTIONS, "--ratio=0.2", "--multiple-of=4", "--from-disk"]
    run = mi_prune(tmp_path / "model", tmp_path / "out", options, kill_after=2)
    assert not run.ended
    assert run.peak_mb > run.anonymous_mb > 50
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.unfinished" / "unfinished.state").is_file()
