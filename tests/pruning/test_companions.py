"""Files of the model folder that are not weights come along with the pruned model, and nothing else does."""

import json

import pytest
import torch
from transformers import AutoModel

from pruning import prune
from pruning.cli import main
from pruning.model.output_folder import MANIFEST, PICTURES
from pruning.report import companions
from pruning.report.companions import copy_companions, source_folder
from pruning.report.save import save_pruned

from tiny import outputs, tiny_model

COME = {
    "LICENSE": "Apache",
    "README.md": "# Card",
    "NOTICE.rtf": "notice",
    "preprocessor_config.json": "{}",
    "chat_template.jinja": "{{ 1 }}",
    "additional_chat_templates/tool_use.jinja": "{{ 2 }}",
    "modeling_own.py": "x = 1",
    "tokenizer.model": "vocabulary",
    "modules.json": json.dumps(
        [{"idx": i, "path": path} for i, path in enumerate(["", "1_Pooling", "2_Dense", "..", "a/b"])]
    ),
    "1_Pooling/config.json": '{"pooling_mode": "mean"}',
    "2_Dense/model.safetensors": "small weights of their own",
    "sentence_bert_config.json": '{"max_seq_length": 16}',
}
STAY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "model.onnx",
    "onnx/config.json",
    "original/params.json",
    "adapter_config.json",
    "trainer_state.json",
    "special_tokens_map.json",
    "notes.jsonl",
    ".env",
    ".cache/README.md",
    "1_Pooling/.hidden",
    "huge.json",
    "outside.txt",
)
WRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A model folder with every kind of file, whose weights are not those of any model."""
    folder = tmp_path / "dense"
    for name in (*COME, *STAY, *WRITTEN):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "outside.txt":
            (folder / name).write_text(COME.get(name, "stale"))
    (tmp_path / "outside.txt").write_text("not of the model")
    (tmp_path / "README.md").write_text("not of the model")
    (folder / "outside.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "huge.json").write_text("0" * 1000)
    monkeypatch.setattr(companions, "MAX_BYTES", 999)
    return folder


@pytest.fixture
def bert():
    return tiny_model("Bert")


def test_everything_that_is_not_weights_comes_along_and_replaces_nothing(
    bert, windows, tokenizer, source, tmp_path
):
    report = prune(bert, None, calibration=windows, ratio=0.25, multiple_of=2)
    out = tmp_path / "out"
    save_pruned(bert, tokenizer, report, out, source=source)
    for name, text in COME.items():
        assert (out / name).read_text() == text, name
    for name in WRITTEN:
        assert (out / name).read_text() != "stale", name
    listed = json.loads((out / MANIFEST).read_text())["files"]
    on_disk = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert on_disk == {*COME, *WRITTEN, "model.safetensors", MANIFEST, PICTURES} == set(listed)
    assert torch.equal(outputs(AutoModel.from_pretrained(out).eval(), windows), outputs(bert, windows))
    save_pruned(bert, tokenizer, report, out, source=source, force=True)  # knows all files as its own


def test_without_a_source_nothing_comes_along(bert, windows, tokenizer, tmp_path):
    report = prune(bert, None, calibration=windows, ratio=0.25, multiple_of=2)
    save_pruned(bert, tokenizer, report, tmp_path / "out")
    assert set(report.files) == {*WRITTEN, "model.safetensors", MANIFEST, PICTURES}


@pytest.mark.parametrize("modules", ["no json", "[]", "{}", "[1]", '[{"path": 3}]', '[{"path": "/"}]'])
def test_odd_lists_of_modules_are_harmless(source, tmp_path, modules):
    (source / "modules.json").write_text(modules)
    (tmp_path / "out").mkdir()
    copy_companions(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").exists()
    assert not (tmp_path / "out" / "1_Pooling").exists()


def test_a_snapshot_in_the_cache_of_the_hub_is_found_and_its_links_followed(tmp_path, monkeypatch):
    repository = tmp_path / "models--some--model"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "LICENSE"):
        (repository / "blobs" / name.lower()).write_text(name)
        (snapshot / name).symlink_to(f"../../blobs/{name.lower()}")
    monkeypatch.setattr(
        companions, "try_to_load_from_cache", lambda repo, file: str(snapshot / file) if repo else None
    )
    assert source_folder("some/model") == snapshot
    (tmp_path / "out").mkdir()
    copy_companions(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "LICENSE"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()


def test_sources_without_a_folder(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    assert source_folder(str(tmp_path / "model.gguf")) is None
    assert source_folder("nobody/nothing-of-that-name") is None
    assert source_folder(str(tmp_path)) == tmp_path


def test_the_command_takes_them_from_the_model_folder(tokenizer, tmp_path):
    dense, out = tmp_path / "dense", tmp_path / "out"
    tiny_model("Llama", width=64).save_pretrained(dense)
    tokenizer.save_pretrained(dense)
    (dense / "LICENSE").write_text("Apache")
    options = ["--ratio=0.5", "--calibration-tokens=2048", "--sequence-length=32", "--sample-size=64"]
    assert main([str(dense), f"--out={out}", "--quiet", "--repair=none", *options]) == 0
    assert (out / "LICENSE").read_text() == "Apache"
