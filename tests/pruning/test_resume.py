"""An interrupted run from disk goes on to the same bits."""

import errno
import json
import random
import re
import shutil
from pathlib import Path

import forks
import pytest
from results import assert_same, result_of, weights

from pruning import Settings, prune_folder
from pruning.model import state
from pruning.model.on_disk import LayersOnDisk
from pruning.model.output_folder import growing_folder
from pruning.report.save import complete

from tiny import tiny, tiny_model, tiny_tokenizer

OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}


def folder_of(model, path):
    model.save_pretrained(path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(path)
    return path


class Interrupt(BaseException):
    """Not an error that anything handles."""


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"refine": True}),
        ("LlamaForCausalLM", {"repair": "lstsq", "budget": "mi"}),
        ("BertModel", {"repair": "bias"}),
        ("LlamaForCausalLM", {"repair": "bias"}),  # adds biases to all projections
        ("Qwen2MoeForCausalLM", {"only": "moe_intermediate_size"}),  # the first layer is not pruned
    ],
)
def test_interrupted_at_every_layer_it_goes_on_to_the_same_result(
    tmp_path, windows, monkeypatch, class_name, options, where
):
    """Interrupted before or after the state behind a layer is written, then resumed, once for each layer."""
    source = folder_of(tiny(class_name, num_hidden_layers=3), tmp_path / "model")
    settings = Settings(**OPTIONS, **options)
    prune_folder(source, tmp_path / "whole", calibration=windows, settings=settings, device="cpu")
    completed, seen = LayersOnDisk.completed, []

    def interrupt(self, layer, streams):
        if where == "after":
            completed(self, layer, streams)
        if self._layers.index(layer) not in seen:
            seen.append(self._layers.index(layer))
            raise Interrupt
        if where == "before":
            completed(self, layer, streams)

    monkeypatch.setattr(LayersOnDisk, "completed", interrupt)

    def run():
        prune_folder(
            source, tmp_path / "out", calibration=windows, settings=settings, device="cpu", resume=True
        )

    for _ in range(3):
        with pytest.raises(Interrupt):
            run()
        assert not (tmp_path / "out").exists()
    run()
    assert seen == [0, 1, 2]
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text())
    done = 2 if where == "before" else 3
    complete = [ffn for ffn in manifest["layers"] if int(re.search(r"\.(\d+)(\.|$)", ffn["name"])[1]) < done]
    assert manifest["resumed"] == {"complete_ffns": len(complete)}
    assert_same(tmp_path / "out", tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "whole", "out"}


@pytest.fixture
def interrupted(tmp_path, windows, monkeypatch):
    """A folder with a model, and a run that was interrupted behind the first layer."""
    folder_of(tiny_model("Llama"), tmp_path / "model")
    completed = LayersOnDisk.completed

    def interrupt(self, layer, streams):
        completed(self, layer, streams)
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(LayersOnDisk, "completed", interrupt)
        with pytest.raises(Interrupt):
            go_on(tmp_path, windows)
    return tmp_path


def prune_without_interruption(folder, windows):
    folder_of(tiny_model("Llama"), folder / "model")
    options = {"calibration": windows, "settings": Settings(**OPTIONS), "device": "cpu"}
    prune_folder(folder / "model", folder / "whole", **options)


def go_on(folder, windows, **options):
    settings = Settings(**(OPTIONS | options.pop("settings", {})))
    options = {"resume": True, "device": "cpu"} | options
    return prune_folder(folder / "model", folder / "out", calibration=windows, settings=settings, **options)


def test_other_settings_calibration_or_weights_are_refused_by_name(interrupted, windows):
    before = {path: path.stat().st_mtime_ns for path in interrupted.rglob("*.safetensors")}
    with pytest.raises(ValueError, match=r"expected the ratio of the interrupted run, 0\.25, got 0\.5"):
        go_on(interrupted, windows, settings={"ratio": 0.5})
    with pytest.raises(ValueError, match="expected the calibration of the interrupted run"):
        go_on(interrupted, windows[:20])
    assert {path: path.stat().st_mtime_ns for path in interrupted.rglob("*.safetensors")} == before
    folder_of(tiny_model("Llama", seed=1), interrupted / "model")
    with pytest.raises(ValueError, match="expected the model of the interrupted run"):
        go_on(interrupted, windows)


@pytest.mark.parametrize("change", [{"rms_norm_eps": 0.1}, {"hidden_act": "gelu"}])
def test_another_config_is_refused(interrupted, windows, change):
    """Its layers would be those of two models."""
    config = interrupted / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match="expected the model of the interrupted run"):
        go_on(interrupted, windows)


def test_it_goes_on_where_only_the_rest_of_the_result_fits_on_the_disk(interrupted, windows, monkeypatch):
    unfinished, disk = interrupted / ".out.unfinished", shutil.disk_usage(interrupted)
    size = sum(file.stat().st_size for file in (interrupted / "model").glob("*.safetensors"))
    used = sum(file.stat().st_size for file in unfinished.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: disk._replace(free=max(0, size - used)))
    go_on(interrupted, windows)
    assert (interrupted / "out").is_dir()


def test_it_runs_on_a_file_system_without_locks(tmp_path, windows, monkeypatch):
    """Linux refuses to lock a folder on NFS, where it locks only files that are open for writing."""

    def refuse(*_args):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", refuse)
    folder_of(tiny_model("Llama"), tmp_path / "model")
    go_on(tmp_path, windows)
    assert (tmp_path / "out").is_dir()


def test_an_interrupted_run_is_only_replaced_if_asked_to(interrupted, windows):
    with pytest.raises(FileExistsError, match="go on with --resume, or begin again with --force"):
        go_on(interrupted, windows, resume=False)
    go_on(interrupted, windows, resume=False, force=True, settings={"ratio": 0.5})
    assert weights(interrupted / "out")["model.layers.0.mlp.down_proj.weight"].shape == (16, 20)


def test_interrupted_behind_the_last_layer_it_prunes_nothing_again(tmp_path, windows, monkeypatch):
    prune_without_interruption(tmp_path, windows)

    def interrupt(*_args, **_options):
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr("pruning.from_disk.complete", interrupt)
        with pytest.raises(Interrupt):
            go_on(tmp_path, windows)
    monkeypatch.setattr(LayersOnDisk, "_write", interrupt)
    go_on(tmp_path, windows)
    (_, manifest), (_, expected) = result_of(tmp_path / "out"), result_of(tmp_path / "whole")
    assert manifest["files"] == expected["files"]
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_what_a_killed_run_was_writing_is_not_part_of_the_result(interrupted, windows):
    """safetensors writes to a hidden file of a random name, then renames it."""
    (interrupted / ".out.unfinished" / ".tmpA1b2C3").write_bytes(b"cut off")
    report = go_on(interrupted, windows)
    assert not [name for name in report.files if name.startswith(".")]
    assert {path.name for path in (interrupted / "out").iterdir()} == set(report.files)


def test_a_file_beside_the_weights_that_was_half_copied_is_copied_again(tmp_path, windows, monkeypatch):
    folder_of(tiny_model("Llama"), tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("All of it.")

    def cut_off(_source, target):
        Path(target).write_text("All")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pruning.report.companions.shutil.copyfile", cut_off)
        patch.setattr(Path, "unlink", lambda *_args, **_options: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            go_on(tmp_path, windows)
    go_on(tmp_path, windows)
    assert (tmp_path / "out" / "LICENSE").read_text() == "All of it."


def test_two_runs_into_one_folder_are_refused(tmp_path, windows):
    folder_of(tiny_model("Llama"), tmp_path / "model")
    with (
        growing_folder(tmp_path / "out", state.STATE, resume=False, force=False),
        pytest.raises(FileExistsError, match="expected no other run that writes to it"),
    ):
        go_on(tmp_path, windows)


def test_files_that_appear_in_the_output_folder_meanwhile_are_not_deleted(interrupted, windows, monkeypatch):
    def slow(*args, **options):
        (interrupted / "out").mkdir()
        (interrupted / "out" / "mine.txt").write_text("mine")
        complete(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("pruning.from_disk.complete", slow)
        with pytest.raises(FileExistsError, match="expected a new or empty folder, got one with files"):
            go_on(interrupted, windows)
    (interrupted / "out").rename(interrupted / "mine")
    monkeypatch.setattr(LayersOnDisk, "_write", None)  # no layer is pruned again
    go_on(interrupted, windows)
    assert (interrupted / "mine" / "mine.txt").read_text() == "mine"
    assert {path.name for path in interrupted.iterdir()} == {"model", "mine", "out"}


def test_a_full_disk_loses_nothing(tmp_path, windows, monkeypatch):
    prune_without_interruption(tmp_path, windows)
    save, files = state.save_file, []

    def full(tensors, path, header):
        files.append(path.name)
        if len(files) == 4:  # the state behind the second layer
            path.write_bytes(b"cut off")
            raise OSError(28, "No space left on device")
        save(tensors, path, header)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space left on device"):
        go_on(tmp_path, windows)
    go_on(tmp_path, windows)
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_a_result_that_cannot_be_moved_into_place_is_not_lost(interrupted, windows, monkeypatch):
    def refused(_staging, _out):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("pruning.model.output_folder._move_into_place", refused)
        with pytest.raises(PermissionError, match="not permitted"):
            go_on(interrupted, windows)
    monkeypatch.setattr(LayersOnDisk, "_write", None)  # no layer is pruned again
    go_on(interrupted, windows)
    assert {path.name for path in interrupted.iterdir()} == {"model", "out"}
    assert not (interrupted / "out" / state.STATE).exists()


def test_killed_at_any_moment_it_goes_on_to_the_same_result(tmp_path):
    folder_of(tiny_model("Llama", num_hidden_layers=6), tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    sizes = ("--ratio=0.25", "--multiple-of=4", "--sequence-length=32", "--calibration-tokens=512")
    options = (
        "--from-disk",
        "--resume",
        "--quiet",
        "--device=cpu",
        "--calibration=text.txt",
        "--sample-size=64",
    )
    common = ("model", *sizes, *options)
    whole = min(forks.seconds_of(tmp_path, *common, f"--out={out}") for out in ("whole", "again"))
    moments, kills = random.Random(0), 0  # noqa: S311
    while kills < 20:
        child = forks.start(tmp_path, *common, "--out=out")
        if forks.kill_after((0.2 + 0.6 * moments.random()) * whole, child):
            kills += 1
        elif kills:
            break
        else:  # it was slower when it was timed
            shutil.rmtree(tmp_path / "out")
            whole /= 2
    else:
        forks.seconds_of(tmp_path, *common, "--out=out")
    assert_same(tmp_path / "out", tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "whole", "again", "out", "text.txt"}
