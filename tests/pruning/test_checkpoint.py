import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from pruning import prune
from pruning.model import checkpoint
from pruning.model.checkpoint import load_model, reload_difference, save_pruned
from pruning.model.families import find_ffns
from pruning.report.manifest import MANIFEST

from tiny import NORMING, SCALING, outputs, tiny_model


@pytest.fixture
def report(llama, windows):
    return prune(llama, None, calibration=windows, ratio=0.25, multiple_of=2)


@pytest.mark.parametrize("repair", ["none", "lstsq", "bias", "sequential"])
def test_saved_model_reloads_with_stock_classes_to_the_same_outputs(
    model, windows, tokenizer, tmp_path, repair
):
    if repair == "bias" and type(model).__name__.startswith(("Mistral", "Qwen")):
        pytest.skip("the class cannot store a bias")
    pruned = prune(model, None, calibration=windows, ratio=0.25, repair=repair, multiple_of=2)
    save_pruned(model, tokenizer, pruned, tmp_path / "out")
    auto = AutoModelForCausalLM if model.can_generate() else AutoModel
    reloaded = auto.from_pretrained(tmp_path / "out").eval()
    assert type(reloaded) is type(model)
    assert torch.equal(outputs(reloaded, windows), outputs(model, windows))
    assert (tmp_path / "out" / MANIFEST).read_text() == pruned.manifest()


@pytest.mark.parametrize("family", [*NORMING, SCALING])
def test_families_that_norm_or_scale_what_the_ffn_gives_reload_too(family, windows, tokenizer, tmp_path):
    model = tiny_model(family)
    save_pruned(model, tokenizer, prune(model, None, calibration=windows, multiple_of=2), tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(outputs(reloaded, windows), outputs(model, windows))


@pytest.mark.parametrize("tied", [True, False])
def test_layers_of_different_widths_load_back_with_our_loader(windows, tokenizer, tmp_path, tied):
    model = tiny_model("Llama", tie_word_embeddings=tied)
    report = prune(
        model, None, calibration=windows, ratio=0.5, budget="kl", multiple_of=2, max_layer_ratio=0.6
    )
    assert len(set(report.widths)) > 1
    save_pruned(model, tokenizer, report, tmp_path / "out")
    reloaded, _ = load_model(str(tmp_path / "out"), dtype=torch.float32, device="cpu")
    assert [ffn.width for ffn in find_ffns(reloaded)] == report.widths
    assert torch.equal(outputs(reloaded, windows), outputs(model, windows))
    assert reload_difference(model, tmp_path / "out", windows[:1]) == 0


def test_weights_that_are_missing_are_named(windows, tokenizer, tmp_path):
    model = tiny_model("Llama")
    report = prune(model, None, calibration=windows, ratio=0.5, budget="kl", multiple_of=2)
    save_pruned(model, tokenizer, report, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match=r"found none named model\.norm\.weight"):
        load_model(str(tmp_path / "out"))


def test_fresh_process_confirms_the_checkpoint_and_notices_a_wrong_one(llama, report, windows, tmp_path):
    save_pruned(llama, None, report, tmp_path / "out")
    assert reload_difference(llama, tmp_path / "out", windows[:1]) == 0
    with torch.no_grad():
        llama.lm_head.weight.mul_(2)
    assert reload_difference(llama, tmp_path / "out", windows[:1]) > 0.1
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="fresh process could not load"):
        reload_difference(llama, tmp_path / "out", windows[:1])


def test_loaded_model_and_tokenizer_are_those_that_were_saved(llama, report, tokenizer, windows, tmp_path):
    save_pruned(llama, tokenizer, report, tmp_path / "out")
    model, loaded_tokenizer = load_model(str(tmp_path / "out"), dtype=torch.float32, device="cpu")
    assert torch.equal(outputs(model, windows), outputs(llama, windows))
    assert loaded_tokenizer("text")["input_ids"] == tokenizer("text")["input_ids"]


def test_error_while_writing_leaves_nothing_behind(llama, report, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(report), "manifest", full)
    with pytest.raises(OSError, match="No space left"):
        save_pruned(llama, None, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_error_while_replacing_keeps_the_old_model(llama, report, tmp_path, monkeypatch):
    save_pruned(llama, None, report, tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    monkeypatch.setattr(checkpoint, "_sync", lambda _file: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        save_pruned(llama, None, report, tmp_path / "out", force=True)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


KILLED_WHILE_SAVING = """
import sys, time
sys.path.insert(0, sys.argv[2])
import torch
from tiny import tiny_model
from pruning import prune
from pruning.model import checkpoint
model = tiny_model("Llama")
report = prune(model, None, calibration=torch.randint(3, 200, (8, 16)), ratio=0.25, multiple_of=2)
def hang(file):
    print("saving", flush=True)
    time.sleep(60)
checkpoint._sync = hang
checkpoint.save_pruned(model, None, report, sys.argv[1])
"""


def test_kill_half_way_leaves_no_output_folder(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(out), os.path.dirname(__file__)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.1)
    assert not out.exists()


def test_output_folder_with_files_is_refused_without_force(llama, report, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text("{}")
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        save_pruned(llama, None, report, tmp_path / "out")
    save_pruned(llama, None, report, tmp_path / "out", force=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.intermediate_size == 30


def test_force_does_not_delete_a_folder_that_is_no_model(llama, report, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="expected an earlier result to replace"):
        save_pruned(llama, None, report, tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_tokenizer_with_templates_in_a_subfolder_is_saved(llama, report, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"})
    save_pruned(llama, tokenizer, report, tmp_path / "out")
    assert list((tmp_path / "out").rglob("tool_use*"))


def test_link_to_an_empty_folder_is_followed(llama, report, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_pruned(llama, None, report, tmp_path / "link")
    assert (tmp_path / "real" / MANIFEST).exists()


def test_file_in_place_of_the_output_folder_is_refused(llama, report, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder to write to, found a file"):
        save_pruned(llama, None, report, tmp_path / "out", force=True)


def test_too_little_disk_space_is_found_before_writing(llama, report, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(100, 99, 1))
    with pytest.raises(OSError, match=r"expected 0 MB of free disk space|free disk space, found 0 MB"):
        save_pruned(llama, None, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_checkpoint_is_refused(tmp_path, name):
    model = tiny_model("Llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=f"expected safetensors, found {name}; pickled"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nowhere", "no such folder"),
        ("/no/model.gguf", "no such GGUF file"),
    ],
)
def test_missing_model_is_named(source, message):
    with pytest.raises(FileNotFoundError, match=f"{source}: {message}"):
        load_model(source)


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a model in safetensors, found none"):
        load_model(str(tmp_path))


def test_remote_code_is_not_run_unless_asked_for(tmp_path):
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = (tmp_path / "config.json").read_text()
    custom = '"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"'
    (tmp_path / "config.json").write_text(config.replace('"model_type": "llama"', custom))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(str(tmp_path))
