"""Pruning from a folder, layer by layer."""

import json

import pytest
import torch
import transformers
from results import weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from pruning import Settings, load_model, prune, prune_folder
from pruning.cli import main
from pruning.model.on_disk import LayersOnDisk, open_folder
from pruning.report.save import save_pruned

from tiny import VOCABULARY, tiny, tiny_model, tiny_tokenizer

OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}


def folder_of(model, path, dtype=torch.float32):
    """The model in several files."""
    model.to(dtype).save_pretrained(path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(path)
    return path


def in_memory(source, out, windows, **options):
    model, tokenizer = load_model(str(source), device="cpu")
    report = prune(model, tokenizer, calibration=windows, **OPTIONS | options)
    save_pruned(model, tokenizer, report, out, source=source)
    return report


def assert_same(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repair": "lstsq"},
        {"repair": "bias"},
        {"budget": "mi"},
        {"criterion": "flap", "repair": "none", "budget": "mi"},
        {"refine": True},
    ],
)
def test_the_result_from_disk_is_that_in_memory_bit_for_bit(tmp_path, windows, options):
    source = folder_of(tiny_model("Llama"), tmp_path / "model")
    expected = in_memory(source, tmp_path / "memory", windows, **options)
    settings = Settings(**OPTIONS, **options)
    report = prune_folder(source, tmp_path / "disk", calibration=windows, settings=settings, device="cpu")
    assert_same(tmp_path / "disk", tmp_path / "memory")
    assert [layer.as_json() for layer in report.layers] == [layer.as_json() for layer in expected.layers]
    assert {p.name for p in tmp_path.iterdir()} == {"model", "memory", "disk"}


@pytest.mark.parametrize(
    "class_name",
    [
        "MixtralForCausalLM",
        "Qwen2MoeForCausalLM",
        "DeepseekV3ForCausalLM",
        "GPT2LMHeadModel",
        "BertModel",
        "Phi3ForCausalLM",
    ],
)
def test_mixtures_encoders_and_fused_projections_too(tmp_path, windows, class_name):
    source = folder_of(tiny(class_name), tmp_path / "model")
    in_memory(source, tmp_path / "memory", windows)
    prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS), device="cpu")
    assert_same(tmp_path / "disk", tmp_path / "memory")


@pytest.mark.parametrize("computing", [torch.bfloat16, torch.float32])
def test_what_a_class_keeps_in_float32_comes_back_bit_for_bit(tmp_path, windows, monkeypatch, computing):
    monkeypatch.setattr("pruning.model.precision.working_dtype", lambda _device: computing)
    source, name = tmp_path / "model", "model.layers.1.mlp.gate.e_score_correction_bias"
    model = tiny("DeepseekV3ForCausalLM").to(torch.bfloat16)
    bias = model.get_buffer(name)
    bias.data = torch.linspace(0.1, 0.2, len(bias))
    assert not torch.equal(bias, bias.bfloat16().float())
    model.save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    settings = Settings(**OPTIONS | {"multiple_of": 8})
    prune_folder(source, tmp_path / "disk", calibration=windows, settings=settings, device="cpu")
    assert torch.equal(weights(tmp_path / "disk")[name], bias)
    if computing is torch.bfloat16:  # as `load_model` leaves it
        in_memory(source, tmp_path / "memory", windows, multiple_of=8)
        assert_same(tmp_path / "disk", tmp_path / "memory")


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPTJConfig(n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=512, **SPECIAL),
        transformers.CodeGenConfig(n_embd=32, n_layer=1, n_head=4, rotary_dim=8, n_positions=512, **SPECIAL),
        transformers.LlamaConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, **SPECIAL
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_tables_of_positions_are_those_that_transformers_computes(tmp_path, config):
    source = folder_of(AutoModelForCausalLM.from_config(config), tmp_path, torch.bfloat16)
    expected = AutoModelForCausalLM.from_pretrained(source).named_buffers()
    found = dict(open_folder(source, device="cpu").model.named_buffers())
    for name, table in expected:
        assert found[name].dtype == table.dtype
        assert torch.equal(found[name], table), name


def test_generation_settings_in_the_config_come_along(tmp_path, windows):
    """As in models from before `generation_config.json`."""
    source = folder_of(tiny_model("Llama"), tmp_path / "model")
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text()) | {"repetition_penalty": 1.5, "max_length": 40}
    (source / "config.json").write_text(json.dumps(config))
    prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS), device="cpu")
    assert GenerationConfig.from_pretrained(tmp_path / "disk").repetition_penalty == 1.5
    in_memory(source, tmp_path / "memory", windows)
    one, other = (
        json.loads((tmp_path / how / "generation_config.json").read_text()) for how in ("disk", "memory")
    )
    assert one == other


def test_the_manifest_and_the_index_have_the_bytes_of_the_saved_tensors(tmp_path, windows):
    source = folder_of(tiny_model("Llama"), tmp_path / "model", torch.bfloat16)
    report = prune_folder(
        source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS), device="cpu"
    )
    before, after = (
        sum(tensor.nbytes for tensor in weights(folder).values()) for folder in (source, tmp_path / "disk")
    )
    assert report.notes["weight_bytes"] == {"before": before, "after": after}
    index = json.loads((tmp_path / "disk" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == after


def test_at_most_the_sampled_layers_have_weights_and_only_one_while_pruning(tmp_path, windows, monkeypatch):
    source = folder_of(tiny_model("Llama", num_hidden_layers=5), tmp_path / "model")
    held, around, load = [], [], LayersOnDisk._load

    def spy(self, names):
        load(self, names)
        present = [not p.is_meta for layer in self._layers for p in [next(layer.parameters())]]
        held.append(sum(present))
        ends = (self._model.get_input_embeddings(), self._model.get_output_embeddings())
        around.append([not module.weight.is_meta for module in ends])

    monkeypatch.setattr(LayersOnDisk, "_load", spy)
    prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS), device="cpu")
    assert max(held) == 2
    assert held[-5:] == [1] * 5
    assert around[0] == [True, True]  # written at the beginning
    assert [True, False] in around  # while tokens become hidden states
    assert around[-5:] == [[False, False]] * 5


def test_the_stored_precision_comes_back_and_stock_transformers_loads_the_result(tmp_path, windows):
    source = folder_of(tiny_model("Qwen2", tie_word_embeddings=True), tmp_path / "model", torch.bfloat16)
    settings = Settings(**OPTIONS | {"multiple_of": 2})
    prune_folder(source, tmp_path / "disk", calibration=windows, settings=settings, device="cpu")
    assert {value.dtype for value in weights(tmp_path / "disk").values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "disk")
    assert model.config.intermediate_size == 30
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untouched = weights(source)
    for name, value in weights(tmp_path / "disk").items():
        assert "mlp" in name or torch.equal(value, untouched[name])


def test_weights_that_are_tied_in_the_config_but_not_in_the_files_stay_apart(tmp_path, windows):
    """As transformers loads them."""
    source = folder_of(tiny_model("Llama", tie_word_embeddings=False), tmp_path / "model")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    expected = weights(source)["lm_head.weight"]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(source).lm_head.weight, expected)
    prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS), device="cpu")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "disk").lm_head.weight, expected)


@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
def test_other_weights_beside_those_of_the_model_are_not_read(tmp_path, windows, shard_size):
    """Such as averaged ones, in another precision; transformers reads `model.safetensors`, or what the index names."""
    source = tmp_path / "model"
    tiny_model("Llama").save_pretrained(source, max_shard_size=shard_size)
    tiny_tokenizer().save_pretrained(source)
    dense = AutoModelForCausalLM.from_pretrained(source).state_dict()
    others = {name: (value + 1).half().contiguous() for name, value in dense.items()}
    save_file(others, source / "model_ema.safetensors", {"format": "pt"})
    save_file({"layers.9.up.weight": torch.ones(2)}, source / "consolidated.safetensors", {"format": "pt"})
    assert load_model(str(source), device="cpu")[0].dtype is torch.float32
    prune_folder(source, tmp_path / "out", calibration=windows, settings=Settings(**OPTIONS), device="cpu")
    for name, value in weights(tmp_path / "out").items():
        assert "mlp" in name or torch.equal(value, dense[name])


def damaged(folder, how):
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    file = folder / document["weight_map"][name]
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "missing":
        file.unlink()
    elif how == "absent":
        save_file({k: v for k, v in load_file(file).items() if k != name}, file, {"format": "pt"})
    return {
        "truncated": "copy it again",
        "missing": "copy the files again",
        "absent": "copy the files again",
    }[how]


@pytest.mark.parametrize("how", ["truncated", "missing", "absent"])
def test_damaged_folders_are_refused_in_one_line_and_nothing_is_left(tmp_path, windows, how):
    source = folder_of(tiny_model("Llama"), tmp_path / "model")
    message = damaged(source, how)
    with pytest.raises((ValueError, OSError), match=message):
        prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "kl"},
            "budget: expected 'uniform' or 'mi' for a model that is pruned from disk, got 'kl'",
        ),
        ({"criterion": "random-pairs", "candidates": 2}, "candidates: expected 1 .* got 2"),
    ],
)
def test_what_needs_the_whole_model_is_refused_by_name(tmp_path, windows, options, message):
    with pytest.raises(ValueError, match=message):
        prune_folder(
            tmp_path, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS, **options)
        )


def test_a_model_that_cannot_be_followed_is_refused_and_nothing_is_left(tmp_path, windows):
    source = folder_of(tiny("T5ForConditionalGeneration"), tmp_path / "model")
    with pytest.raises(ValueError, match="one list of layers"):
        prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_command_prunes_from_disk_and_refuses_what_needs_the_whole_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(tiny_model("Llama"), tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    sizes = [
        "--ratio=0.3",
        "--multiple-of=2",
        "--sequence-length=32",
        "--calibration-tokens=512",
        "--device=cpu",
    ]
    command = ["model", "--from-disk", "--out", "out", "--calibration=text.txt", *sizes]
    assert main([*command, "--verify"]) == 1
    assert "--verify: expected none with --from-disk" in capsys.readouterr().err
    assert main(command) == 0
    assert "Kept 84 of 120 neurons. Saved to out." in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text())
    assert manifest["model"] == "model"
    assert set(manifest["files"]) == {p.name for p in (tmp_path / "out").iterdir()}
    assert main(["out", "--from-disk", "--out", "again", "--calibration=text.txt", *sizes]) == 0
    assert weights(tmp_path / "again")["model.layers.2.mlp.down_proj.weight"].shape == (16, 20)
