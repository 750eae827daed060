"""`save_pruned`: what it writes, and that the output folder appears complete or not at all."""

import os
import shutil
import signal
import time
from collections import namedtuple

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from mikernels.written import complete_file
from pruning import prune
from pruning.model.output_folder import MANIFEST
from pruning.report import save
from pruning.report.save import save_pruned

from tiny import NORMING, SCALING, outputs, tiny_model


@pytest.fixture
def report(llama, windows):
    return prune(llama, None, calibration=windows, ratio=0.25, multiple_of=2)


@pytest.mark.parametrize("repair", ["none", "lstsq", "bias", "sequential"])
def test_a_saved_model_loads_as_its_stock_class_with_the_same_outputs(
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
def test_families_that_normalize_or_scale_the_ffn_output_load_as_their_stock_class(
    family, windows, tokenizer, tmp_path
):
    model = tiny_model(family)
    save_pruned(model, tokenizer, prune(model, None, calibration=windows, multiple_of=2), tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(outputs(reloaded, windows), outputs(model, windows))


def test_other_users_may_read_a_result_as_the_umask_says(llama, report, tokenizer, tmp_path):
    before = os.umask(0o027)
    try:
        save_pruned(llama, tokenizer, report, tmp_path / "out")
    finally:
        os.umask(before)
    found = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "out").iterdir()}
    assert found == dict.fromkeys(report.files, "0o640")


def test_two_processes_do_not_write_one_file_at_once(tmp_path):
    """Each would cut off what the other has written so far, and the first to end would put a mixture in its place."""
    path = tmp_path / "statistics.safetensors"
    with complete_file(path) as partial, partial.open("w") as file:
        file.write("whole ")
        file.flush()
        with (
            pytest.raises(FileExistsError, match="expected no other run that writes to it"),
            complete_file(path),
        ):
            partial.write_text("another")
        file.write("file")
    assert path.read_text() == "whole file"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "file")
    for text in ("new", "replaced"):
        with complete_file(tmp_path / "link") as partial:
            partial.write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "file").read_text() == text


def test_an_error_while_writing_leaves_no_files(llama, report, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(report), "manifest", full)
    with pytest.raises(OSError, match="No space left"):
        save_pruned(llama, None, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_no_folder_is_an_error_before_anything_is_written(
    llama, report, tmp_path, monkeypatch
):
    monkeypatch.setattr(llama, "save_pretrained", None)
    with pytest.raises(
        FileNotFoundError, match="source: expected the folder of the dense model, got org/name"
    ):
        save_pruned(llama, None, report, tmp_path / "out", source="org/name")
    assert not any(tmp_path.iterdir())


def test_an_error_while_replacing_keeps_the_old_result(llama, report, tmp_path, monkeypatch):
    save_pruned(llama, None, report, tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    monkeypatch.setattr(save, "settle", lambda _file: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        save_pruned(llama, None, report, tmp_path / "out", force=True)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_files_that_appear_in_the_output_folder_meanwhile_are_not_deleted(
    llama, report, tmp_path, monkeypatch
):
    save_pruned(llama, None, report, tmp_path / "out")
    complete = save.complete

    def slow(*args, **options):
        (tmp_path / "out" / "notes.txt").write_text("mine")
        complete(*args, **options)

    monkeypatch.setattr(save, "complete", slow)
    with pytest.raises(FileExistsError, match=r"expected only files of an earlier result .*notes\.txt"):
        save_pruned(llama, None, report, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_killing_the_process_while_saving_leaves_no_output_folder(llama, report, tmp_path, monkeypatch):
    reader, writer = os.pipe()

    def hang(_file):
        os.write(writer, b"saving")
        time.sleep(60)

    monkeypatch.setattr(save, "settle", hang)
    child = os.fork()  # a fresh process would take seconds to import everything
    if child == 0:
        try:
            save_pruned(llama, None, report, tmp_path / "out")
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 6) == b"saving"
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert any(tmp_path.iterdir())  # what was written so far
    assert not (tmp_path / "out").exists()


def test_an_earlier_result_is_replaced_only_with_force(llama, report, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text("{}")
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        save_pruned(llama, None, report, tmp_path / "out")
    save_pruned(llama, None, report, tmp_path / "out", force=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.intermediate_size == 30


def test_force_does_not_replace_a_folder_of_other_files(llama, report, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="expected an earlier result to replace"):
        save_pruned(llama, None, report, tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["notes.txt", "sub/statistics", "link"])
def test_force_does_not_delete_files_that_were_put_into_an_earlier_result(llama, report, tmp_path, name):
    out = tmp_path / "out"
    save_pruned(llama, None, report, out)
    (out / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (out / name).symlink_to(tmp_path)
    else:
        (out / name).write_text("mine")
    before = {file: file.lstat().st_ino for file in out.rglob("*")}
    with pytest.raises(
        FileExistsError, match=f"expected only files of an earlier result .*, got {name}; move"
    ):
        save_pruned(llama, None, report, out, force=True)
    assert {file: file.lstat().st_ino for file in out.rglob("*")} == before
    (out / name).unlink()
    save_pruned(llama, None, report, out, force=True)


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"files": 1}', "no json"])
def test_a_manifest_without_a_list_of_files_gives_nothing_away(llama, report, tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest)
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"got config\.json; move"):
        save_pruned(llama, None, report, tmp_path, force=True)


def test_a_tokenizer_with_templates_in_a_subfolder_is_saved(llama, report, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"})
    save_pruned(llama, tokenizer, report, tmp_path / "out")
    assert list((tmp_path / "out").rglob("tool_use*"))


def test_a_link_to_an_empty_folder_is_followed(llama, report, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_pruned(llama, None, report, tmp_path / "link")
    assert (tmp_path / "real" / MANIFEST).exists()


def test_a_file_as_the_output_folder_is_an_error(llama, report, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder to write to, got a file"):
        save_pruned(llama, None, report, tmp_path / "out", force=True)


def test_too_little_disk_space_is_an_error_before_anything_is_written(llama, report, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(save, "weight_bytes", lambda _model: 5e6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(100, 99, 1))
    with pytest.raises(OSError, match=r"expected 5 MB of free disk space, got 0 MB"):
        save_pruned(llama, None, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
