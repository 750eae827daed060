"""What is loaded is what was stored, and what is saved is what is in memory: names, shapes and dtypes."""

import json
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pruning import load_model, prune
from pruning.cli import main
from pruning.model.precision import set_dtypes
from pruning.report.save import save_pruned

from tiny import outputs, reload_here, tiny_model


@pytest.fixture
def stored(tokenizer, tmp_path):
    """Save a model, with its weights and its config changed by functions; returns the folder."""

    def save(model, weights=lambda w: w, config=lambda c: c):
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        save_file(weights(load_file(file)), file)
        entries = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config(entries)))
        return str(tmp_path)

    return save


def without(*names):
    return lambda entries: {name: value for name, value in entries.items() if name not in names}


def with_prefix(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_weights_of_a_wrapped_model_are_an_error_that_says_so(stored, prefix):
    folder = stored(tiny_model("Llama"), with_prefix(prefix))
    with pytest.raises(
        ValueError, match=rf"got none named .* in total\); .*'{prefix}', so re-save the unwrapped"
    ):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_missing_weight_is_an_error_that_names_it(stored, name):
    folder = stored(tiny_model("Llama", tie_word_embeddings=False), without(name))
    with pytest.raises(ValueError, match=f"expected all weights of LlamaForCausalLM, got none named {name}"):
        load_model(folder, device="cpu")


def test_a_tied_weight_is_not_missing(stored, windows):
    model = tiny_model("Llama", tie_word_embeddings=True)
    loaded, _ = load_model(stored(model), device="cpu")
    assert torch.equal(outputs(loaded, windows), outputs(model, windows))


def test_other_shapes_are_an_error(stored):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = stored(tiny_model("Llama"), lambda w: w | {name: w[name][:8].clone()})
    with pytest.raises(ValueError, match=rf"got \(8, 16\) instead of \(40, 16\) for {name}"):
        load_model(folder, device="cpu")


def test_layers_that_the_config_does_not_count_are_an_error(stored):
    folder = stored(tiny_model("Llama"), config=lambda c: c | {"num_hidden_layers": 2})
    with pytest.raises(ValueError, match=r"got more, named model\.layers\.2\.input_layernorm.* in total"):
        load_model(folder, device="cpu")


def test_a_body_saved_under_the_name_of_a_class_with_a_head_is_loaded_as_the_body(stored, windows):
    model = tiny_model("Bert")
    folder = stored(model, config=lambda c: c | {"architectures": ["BertForMaskedLM"]})
    with pytest.warns(UserWarning, match="of BertForMaskedLM beyond BertModel are not stored"):
        loaded, _ = load_model(folder, device="cpu")
    assert type(loaded) is transformers.BertModel
    assert torch.equal(outputs(loaded, windows), outputs(model, windows))
    loaded.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(folder, device="cpu")


def test_a_body_that_is_incomplete_is_an_error_whatever_the_head(stored):
    names = without("encoder.layer.1.output.dense.weight")
    folder = stored(tiny_model("Bert"), names, lambda c: c | {"architectures": ["BertForMaskedLM"]})
    with pytest.raises(ValueError, match=r"of BertForMaskedLM, got none named bert\.encoder\.layer\.1"):
        load_model(folder, device="cpu")


def test_another_head_is_named_in_a_warning(stored):
    extra = {"value_head.weight": torch.ones(1, 16)}
    folder = stored(tiny_model("Llama"), lambda w: w | extra)
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM has no place for value_head\.weight"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_files_beside_the_weights_are_an_error(stored, tmp_path, file):
    folder = stored(tiny_model("Llama"))
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=r"got one with adapter files; .* merge_and_unload\(\)"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("class_name", ["BertModel", "LlamaForCausalLM", "LlamaModel"])
def test_a_config_without_architectures_gives_the_class_that_fits(stored, windows, class_name):
    model = tiny_model(class_name.removesuffix("Model").removesuffix("ForCausalLM"))
    model = model if type(model).__name__ == class_name else model.model
    loaded, _ = load_model(stored(model, config=without("architectures")), device="cpu")
    assert type(loaded).__name__ == class_name
    assert torch.equal(outputs(loaded, windows), outputs(model, windows))


def test_a_config_without_architectures_is_an_error_if_several_classes_fit(stored):
    model = transformers.BertForMaskedLM(tiny_model("Bert").config)
    folder = stored(model, config=without("architectures"))
    with pytest.raises(ValueError, match=r"weights fit BertForMaskedLM or BertLMHeadModel; add a line"):
        load_model(folder, device="cpu")


def test_a_class_that_transformers_does_not_have_is_an_error(stored):
    folder = stored(tiny_model("Llama"), config=lambda c: c | {"architectures": ["LlamaForChess"]})
    with pytest.raises(ValueError, match=r"expected a class of transformers .* got LlamaForChess"):
        load_model(folder, device="cpu")


def test_weights_of_eight_bits_without_a_word_in_the_config_are_an_error(stored):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = stored(tiny_model("Llama"), lambda w: w | {name: w[name].to(torch.float8_e4m3fn)})
    with pytest.raises(
        ValueError, match=f"expected weights of 16 bits or more, got F8_E4M3 for {name} and no"
    ):
        load_model(folder, device="cpu")


def test_weights_of_eight_bits_in_memory_are_an_error(windows):
    model = tiny_model("Llama")
    up = model.model.layers[1].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp: expected floating-point weights of 16 bits or more"
    ):
        prune(model, None, calibration=windows)


def test_a_file_that_is_cut_off_is_an_error(stored, tmp_path):
    folder = stored(tiny_model("Llama"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected .* bytes as in its header"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_stored_dtype_is_loaded_whatever_the_config_says(stored, dtype):
    model = tiny_model("Llama").to(dtype)
    folder = stored(model, config=lambda c: c | {"dtype": "float32"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, _ = load_model(folder, device="cpu")
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype is dtype
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.fixture
def pruned(windows):
    model = tiny_model("Llama")
    return model, prune(model, None, calibration=windows, ratio=0.25, multiple_of=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder, weights: (folder / "config.json").unlink(),
            r"expected config\.json to be written, got none",
        ),
        (lambda folder, weights: (folder / "model.safetensors").unlink(), r"weights to be written, got 0"),
        (lambda folder, weights: weights.pop("model.norm.weight"), r"differ in model\.norm\.weight"),
        (
            lambda folder, weights: weights.update({"model.norm.weight": torch.ones(17)}),
            r"expected model\.norm\.weight to be written as torch\.float32 \[16\], got F32 \[17\]",
        ),
        (
            lambda folder, weights: weights.update({"model.norm.weight": torch.ones(16).half()}),
            r"expected model\.norm\.weight to be written as torch\.float32 \[16\], got F16 \[16\]",
        ),
    ],
)
def test_files_that_are_not_the_model_in_memory_give_no_output(
    pruned, tmp_path, monkeypatch, change, message
):
    model, report = pruned
    original = model.save_pretrained

    def save(folder):
        original(folder)
        weights = load_file(folder / "model.safetensors")
        before = dict(weights)
        change(folder, weights)
        if [id(value) for value in weights.values()] != [id(value) for value in before.values()]:
            save_file(weights, folder / "model.safetensors")

    monkeypatch.setattr(model, "save_pretrained", save)
    with pytest.raises(OSError, match=message):
        save_pruned(model, None, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_does_not_describe_the_model_gives_no_output(pruned, tmp_path):
    model, report = pruned
    model.config.vocab_size += 1
    with pytest.raises(ValueError, match="expected only FFNs to change"):
        save_pruned(model, None, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "tied"), [("float32", False), ("float16", True), ("bfloat16", False)])
def test_the_command_saves_the_stored_dtype_and_weights_it_does_not_prune_bit_for_bit(
    stored, tmp_path, capsys, monkeypatch, dtype, tied
):
    reload_here(monkeypatch)
    model = tiny_model("Llama", tie_word_embeddings=tied).to(getattr(torch, dtype))
    folder, out = stored(model), tmp_path / "result" / "out"
    options = ["--sequence-length=32", "--calibration-tokens=1024", "--multiple-of=2", "--ratio=0.25"]
    options += ["--verify"] if tied else []
    assert main([folder, "--out", str(out), "--device=cpu", "--quiet", *options]) == 0
    assert f"Saved to {out} in {dtype}" in capsys.readouterr().out
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path, out))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype is getattr(torch, dtype)
        if "mlp" not in name:
            assert torch.equal(after[name], weight)
    kept = json.loads((out / "mi_prune.json").read_text())["layers"][0]
    dropped = set(kept["dropped"]["neuron"])
    rows = [row for row in range(40) if row not in dropped]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[name], before[name][rows])
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


def test_a_dtype_that_is_asked_for_is_saved(stored, tmp_path, capsys):
    folder, out = stored(tiny_model("Llama")), tmp_path / "result" / "out"
    options = ["--sequence-length=32", "--calibration-tokens=1024", "--multiple-of=2", "--dtype=bfloat16"]
    assert main([folder, "--out", str(out), "--device=cpu", "--quiet", *options]) == 0
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_a_value_beyond_the_range_of_the_dtype_is_an_error():
    layer = torch.nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0], [1e6]])
    with pytest.raises(
        ValueError, match=r"weight: expected values within the range of torch\.float16, got 1e\+06"
    ):
        set_dtypes(layer, {}, torch.float16)
    assert layer.weight.dtype is torch.float32
