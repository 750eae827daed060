"""Files of the model folder that are not weights come along with the pruned model, and nothing else does."""

import copy
import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

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
    "modeling_own.py": "x = 1",
    "quantization_own.py": "x = 2",
    "tokenizer.model": "vocabulary",
    "modules.json": json.dumps(
        [{"idx": i, "path": path} for i, path in enumerate(["", "1_Pooling", "2_Dense", "..", "a/b"])]
    ),
    "1_Pooling/config.json": '{"pooling_mode": "mean"}',
    "2_Dense/model.safetensors": "small weights of their own",
    "sentence_bert_config.json": '{"max_seq_length": 16}',
}
OF_TOKENIZER = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
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
    "hf_quant_config.json",  # of ModelOpt
    "quantize_config.json",  # of GPTQ
    "quant_config.json",  # of AWQ
    "quanto_qmap.json",
    "quant_model_description_w8a8.json",
    "recipe.yaml",  # of llm-compressor
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
    for name in (*COME, *STAY, *OF_TOKENIZER, *WRITTEN):
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


def test_the_files_of_a_tokenizer_come_from_the_source_only_if_none_is_saved(
    bert, windows, tokenizer, source, tmp_path
):
    (source / "tokenizer.json").unlink()
    report = prune(bert, None, calibration=windows, ratio=0.25, multiple_of=2)
    save_pruned(bert, None, report, tmp_path / "none", source=source)
    save_pruned(bert, tokenizer, report, tmp_path / "out", source=source)
    for name in OF_TOKENIZER:
        assert (tmp_path / "none" / name).read_text() == "stale", name
        assert not (tmp_path / "out" / name).exists(), name


def test_a_chat_template_that_was_removed_does_not_come_back(tokenizer, tmp_path):
    own, source, out = copy.deepcopy(tokenizer), tmp_path / "source", tmp_path / "out"
    own.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    own.save_pretrained(source)
    (source / "tokenizer.model").write_text("vocabulary")
    assert AutoTokenizer.from_pretrained(source).chat_template is not None
    own.chat_template = None
    own.save_pretrained(out)
    copy_companions(source, out)
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert (out / "tokenizer.model").exists()


def test_vocabularies_stay_if_the_tokenizer_has_another_one(tokenizer, source, tmp_path):
    (source / "vocab.json").write_text("{}")
    tokenizer.save_pretrained(source)
    written = json.loads((source / "tokenizer.json").read_text())
    del written["model"]["vocab"]["a"]
    (source / "tokenizer.json").write_text(json.dumps(written))
    tokenizer.save_pretrained(tmp_path / "out")
    copy_companions(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").exists()
    assert not {"vocab.json", "tokenizer.model"} & {path.name for path in (tmp_path / "out").iterdir()}


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
