"""What a user names is checked before the model is loaded, and is never lost."""

import io
import json
import os
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning import Settings, prune
from pruning.choose.origin import model_fingerprint
from pruning.cli import main

from tiny import tiny_model

SHORT = (
    "--sequence-length=32",
    "--calibration-tokens=2048",
    "--multiple-of=2",
    "--sample-size=128",
    "--quiet",
)
OPTIONS = {"multiple_of": 2, "sample_size": 128}


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("mine")
    tiny_model("Llama").save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "text.txt").write_text("All happy families are alike. " * 200)
    (root / "link").symlink_to(root / "absent" / "s")
    (root / "earlier").mkdir()
    (root / "earlier" / "mi_prune.json").write_text('{"files": []}')
    (root / "earlier" / "text.txt").write_text("All happy families are alike. " * 200)
    save = ["--save-statistics", str(root / "statistics")]
    assert main([str(root / "model"), "--out", str(root / "first"), *save, *SHORT]) == 0
    return root


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        (
            "earlier",
            ["--force", "--save-statistics", "earlier/s"],
            "--out: expected a folder without the file",
        ),
        ("earlier", ["--force"], "expected only files of an earlier result to replace, got text.txt; move"),
        (".", [], "without the file or folder of the model, model"),
        ("new", ["--save-statistics", "new/s"], "--out: expected a folder without the file"),
        ("earlier", ["--force", "--calibration", "earlier/text.txt"], "--calibration"),
        ("earlier", ["--force", "--evaluate", "earlier/text.txt"], "--evaluate"),
        ("new", ["--save-statistics", "earlier"], "expected a file, got the folder"),
        ("new", ["--statistics", "earlier"], "expected a statistics file, got a folder"),
        ("new", ["--save-statistics", "absent/s"], "expected an existing folder"),
        ("new", ["--save-statistics", "link"], "expected an existing folder"),
        ("new", ["--save-statistics", "text.txt"], "got a file with other data"),
        ("new", ["--save-statistics", os.devnull], "got a file with other data"),
        (
            "new",
            ["--save-statistics", "text.txt", "--calibration", "text.txt"],
            "--save-statistics: expected",
        ),
        (
            "new",
            ["--save-statistics", "model/model.safetensors"],
            "--save-statistics: expected a file beside",
        ),
        ("text.txt/new", [], "text.txt: expected a folder to write to, got a file"),
        ("new", ["--device", "cuda:99"], "device: expected a device of this machine"),
        ("new", ["--device", "nonsense"], "device: expected a device of this machine"),
        ("new", ["--evaluation-tokens", "0"], "--evaluation-tokens: expected a positive integer"),
    ],
)
def test_what_would_be_lost_or_late_is_one_line_before_loading(
    root, capsys, monkeypatch, out, options, message
):
    monkeypatch.chdir(root)
    monkeypatch.setattr("pruning.comparing.load_model", None)
    before = contents(root)
    assert main(["model", "--out", out, *options, *SHORT]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert message in error
    assert error.count("\n") == 1
    assert contents(root) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--sample-size=256"],
            "sample_size (--sample-size): expected 128, which statistics was measured with",
        ),
        (["--calibration-tokens=1024"], "(--calibration-tokens or --num-samples): expected 2048"),
        (["--num-samples=2"], "(--calibration-tokens or --num-samples): expected 2048"),
    ],
)
def test_what_statistics_were_not_measured_with_is_refused_before_loading(
    root, capsys, monkeypatch, options, message
):
    monkeypatch.chdir(root)
    monkeypatch.setattr("pruning.comparing.load_model", None)
    assert main(["model", "--out=new", "--statistics=statistics", "--repair=lstsq", *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_statistics_were_not_measured_with_is_refused_in_python(root):
    with pytest.raises(ValueError, match=r"sample_size .*: expected 128, .*, got 256"):
        prune(tiny_model("Llama"), None, statistics=root / "statistics", repair="lstsq", sample_size=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt="], "--prompt: expected a text of at least one token"),
        (["--prompt", "word " * 50], "--prompt: expected at most 32 tokens"),
        (
            ["--statistics", "statistics", "--calibration", "text.txt"],
            "calibration: expected the tokens that",
        ),
        (["--statistics", "statistics", "--estimator", "kde"], "expected statistics measured with kde"),
    ],
)
def test_what_needs_the_model_is_checked_before_the_first_long_step(
    root, capsys, monkeypatch, options, message
):
    monkeypatch.chdir(root)
    monkeypatch.setattr("pruning.comparing.take_snapshot", None)
    assert main(["model", "--out", "new", *options, *SHORT]) == 1
    output, error = capsys.readouterr()
    assert (output, error.count("\n")) == ("", 1)
    assert message in error


def test_a_generation_config_that_cannot_be_saved_is_an_early_error(root, capsys, monkeypatch):
    monkeypatch.chdir(root)

    def load(*_args, **_options):
        model = tiny_model("Llama")
        model.generation_config.temperature = 0.3  # without sampling
        return model, None

    monkeypatch.setattr("pruning.comparing.load_model", load)
    monkeypatch.setattr(
        "pruning.comparing.prepare", lambda model, *_args, **_options: ([], None, Settings(), {}, 0, False)
    )
    monkeypatch.setattr("pruning.comparing.evaluate", None)
    assert main(["model", "--out", "new", *SHORT]) == 1
    assert "generation_config: expected one that can be saved" in capsys.readouterr().err


def test_a_terminal_of_another_encoding_gets_escapes(root, monkeypatch):
    monkeypatch.chdir(root)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    options = ("--statistics", "statistics", "--repair=lstsq", "--prompt=\u65e5")
    assert main(["model", "--out", "ascii", *options, *SHORT]) == 0
    assert b"\\u65e5" in stream.buffer.getvalue()
    assert stream.errors == "strict"


def test_a_closed_pipe_is_one_line_and_no_second_error_at_the_end(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        options = ["--statistics", "statistics", "--repair=lstsq"]
        assert main(["model", "--out", "piped", *options, *SHORT]) == 1
        stream.flush()  # as Python does when it ends
    error = capsys.readouterr().err
    assert "Broken pipe (already saved: the pruned model in piped)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_warnings_are_one_line_each_and_in_the_manifest(root, capsys, monkeypatch, quiet):
    monkeypatch.chdir(root)
    options = [*SHORT[:-1], "--calibration-tokens=96", *(["--quiet"] if quiet else [])]
    assert main(["model", "--out", f"warned-{quiet}", *options]) == 0
    error = capsys.readouterr().err
    expected = (
        "calibration: expected at least 4 tokens for each of the 32 kept neurons of a layer, got 64 tokens"
    )
    (warning,) = json.loads((root / f"warned-{quiet}" / "mi_prune.json").read_text())["warnings"]
    assert warning.startswith(expected)
    assert error.count(f"mi-prune: warning: {expected}") == (not quiet)
    assert error == "" or not quiet


def test_an_unknown_error_is_one_line_and_has_a_traceback_with_debug(root, capsys, monkeypatch):
    monkeypatch.chdir(root)

    def fail(*_args, **_options):
        raise KeyError("a\nb")

    monkeypatch.setattr("pruning.comparing.save_pruned", fail)
    options = ["--save-statistics", "again", *SHORT]
    assert main(["model", "--out", "new", *options]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert error == "mi-prune: KeyError: 'a\\nb' (already saved: the statistics in again)\n"
    assert main(["model", "--out", "new", "--debug", *SHORT]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_command_that_is_told_to_end_leaves_nothing_behind(root, tmp_path, monkeypatch):
    """Its temporary files would fill the disk: N^2 x 8 bytes for each layer."""

    def terminated(*_args, **_options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.chdir(root)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pruning.pipeline.decide", terminated)
    before = sorted(root.iterdir())
    child = os.fork()
    if child == 0:
        try:
            main(["model", "--out=new", "--calibration=text.txt", "--budget=mi", "--device=cpu", *SHORT])
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert not list(tmp_path.iterdir())
    assert sorted(root.iterdir()) == before


def test_the_fingerprint_is_of_the_values_in_any_dtype():
    model = tiny_model("Llama").bfloat16()
    fingerprint = model_fingerprint(model)
    assert model_fingerprint(model.float()) == fingerprint
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] += 1
    assert model_fingerprint(model) != fingerprint


def test_statistics_of_other_weights_or_an_earlier_version_are_refused(windows, tmp_path):
    path = tmp_path / "statistics"
    prune(tiny_model("Llama"), None, calibration=windows, save_statistics=path, **OPTIONS)
    with pytest.raises(ValueError, match="got those of a model with other weights"):
        prune(tiny_model("Llama", seed=1), None, statistics=path, repair="lstsq", **OPTIONS)
    with pytest.raises(ValueError, match=r"calibration: expected the tokens that .* was measured on"):
        prune(tiny_model("Llama"), None, statistics=path, calibration=windows[:-1], **OPTIONS)
    report = prune(tiny_model("Llama"), None, statistics=path, repair="lstsq", **OPTIONS)
    assert report.notes["calibration"]["tokens"] == windows.numel()
    save_file(load_file(path), path, {"measured": "grid on 16 nodes"})
    with pytest.raises(ValueError, match="earlier version; measure again"):
        prune(tiny_model("Llama"), None, statistics=path, repair="lstsq", **OPTIONS)
