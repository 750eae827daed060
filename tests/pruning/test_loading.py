"""`load_model`: what it loads, and what it refuses."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning import load_model, prune
from pruning.model.ffn import find_ffns
from pruning.report.save import save_pruned

from tiny import outputs, tiny_model


@pytest.fixture
def uneven(windows, tokenizer, tmp_path):
    """A pruned model with layers of different widths, its report, and the folder it is saved in."""

    def make(**config):
        model = tiny_model("Llama", **config)
        report = prune(
            model, None, calibration=windows, ratio=0.5, budget="kl", multiple_of=2, max_layer_ratio=0.6
        )
        assert len(set(report.widths)) > 1
        save_pruned(model, tokenizer, report, tmp_path / "out")
        return model, report, tmp_path / "out"

    return make


@pytest.mark.parametrize("tied", [True, False])
def test_layers_of_different_widths_load_to_the_same_outputs(uneven, windows, tied):
    model, report, folder = uneven(tie_word_embeddings=tied)
    reloaded, _ = load_model(str(folder), dtype=torch.float32, device="cpu")
    assert [ffn.width for ffn in find_ffns(reloaded)] == report.widths
    assert torch.equal(outputs(reloaded, windows), outputs(model, windows))


def test_the_error_for_missing_or_unexpected_weights_names_them(uneven):
    _, _, folder = uneven()
    weights = load_file(folder / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"got none named model\.norm\.weight"):
        load_model(str(folder))
    save_file(weights | {"model.norm.weight": norm, "foreign": norm.clone()}, folder / "model.safetensors")
    with pytest.warns(UserWarning, match="LlamaForCausalLM has no place for foreign"):
        load_model(str(folder))


def test_the_loaded_model_and_tokenizer_are_the_saved_ones(windows, tokenizer, tmp_path):
    llama = tiny_model("Llama")
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded_tokenizer = load_model(str(tmp_path), dtype=torch.float32, device="cpu")
    assert torch.equal(outputs(model, windows), outputs(llama, windows))
    assert loaded_tokenizer("text")["input_ids"] == tokenizer("text")["input_ids"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickled_checkpoint_is_an_error(tmp_path, name):
    model = tiny_model("Llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=f"expected safetensors, got {name}; pickled"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nowhere", "no such folder"),
        ("/no/model.gguf", "no such GGUF file"),
    ],
)
def test_the_error_for_a_missing_model_names_it(source, message):
    with pytest.raises(FileNotFoundError, match=f"{source}: {message}"):
        load_model(source)


def test_the_error_for_a_folder_without_a_model_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: expected a model in safetensors, got none"):
        load_model(str(tmp_path))


def test_remote_code_does_not_run_by_default(tmp_path):
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = (tmp_path / "config.json").read_text()
    custom = '"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"'
    (tmp_path / "config.json").write_text(config.replace('"model_type": "llama"', custom))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_an_error_that_names_it(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: expected a tokenizer that can be loaded, got: "):
        load_model(str(tmp_path), device="cpu")
