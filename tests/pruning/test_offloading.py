"""Models whose weights accelerate has put elsewhere are pruned where they are."""

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import has_offloaded_params
from results import weights
from transformers import AutoModelForCausalLM

from pruning import prune, sweep
from pruning.choose.origin import model_fingerprint
from pruning.layer_by_layer import prune_layers

from tiny import outputs, tiny, tiny_model

OPTIONS = {"ratio": 0.25, "multiple_of": 2, "sample_size": 64}
PLACES = (
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.1.self_attn",
    "model.layers.1.mlp",
    "model.layers.1.input_layernorm",
    "model.layers.1.post_attention_layernorm",
    "model.layers.2",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
)
LAYERS = PLACES[1:7]


@pytest.fixture
def load(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path / "model")

    def from_folder(*on_disk, **options):
        places = {place: "disk" if place in on_disk else "cpu" for place in PLACES}
        if on_disk:
            options = {"device_map": places, "offload_folder": tmp_path / "offloaded"} | options
        return AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)

    return from_folder


def elsewhere(model):
    """The names of parameters that are not in memory, and the modules whose hooks bring them."""
    return (
        [name for name, parameter in model.named_parameters() if parameter.is_meta],
        [name for name, module in model.named_modules() if has_offloaded_params(module)],
    )


def assert_same_files(one, other, folder):
    for name, model in (("one", one), ("other", other)):
        model.save_pretrained(folder / name)
    first, second = weights(folder / "one"), weights(folder / "other")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    configs = [(folder / name / "config.json").read_text() for name in ("one", "other")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("on_disk", "options"),
    [
        (["lm_head"], {}),
        (["model.layers.1.mlp"], {"repair": "lstsq"}),
        (LAYERS, {"budget": "mi"}),
        (["model.embed_tokens", *LAYERS], {"repair": "bias"}),  # adds biases
        (PLACES, {"refine": True, "memory_budget": 1}),
    ],
)
def test_what_is_on_disk_is_pruned_there_to_the_same_bits(tmp_path, load, windows, on_disk, options):
    whole, offloaded = load(), load(*on_disk)
    before = elsewhere(offloaded)
    assert all(before)
    checkpoint = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    reports = [prune(model, None, calibration=windows, **OPTIONS, **options) for model in (whole, offloaded)]
    names, hooks = elsewhere(offloaded)
    assert set(names) >= set(before[0])
    assert hooks == before[1]
    assert [layer.as_json() for layer in reports[0].layers] == [
        layer.as_json() for layer in reports[1].layers
    ]
    assert reports[0].notes["model_fingerprint"] == reports[1].notes["model_fingerprint"]
    assert torch.equal(outputs(whole, windows), outputs(offloaded, windows))
    assert_same_files(whole, offloaded, tmp_path)
    assert checkpoint == {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MixtralForCausalLM", "GPT2LMHeadModel"])
def test_what_is_on_the_cpu_is_pruned_there_to_the_same_bits(windows, name):
    whole, offloaded = tiny(name), tiny(name)
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    for model in (whole, offloaded):
        prune(model, None, calibration=windows, **OPTIONS | {"multiple_of": 4})
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(outputs(whole, windows), outputs(offloaded, windows))
    remove_hook_from_submodules(offloaded)
    state = offloaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_error_leaves_the_model_and_the_offload_folder_as_they_were(
    tmp_path, load, windows, monkeypatch, where
):
    model = load(*LAYERS) if where == "disk" else load()
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    expected, before, fingerprint = outputs(model, windows), elsewhere(model), model_fingerprint(model)
    folder = sorted(tmp_path.rglob("*"))

    def fail(*args, **options):
        layers = prune_layers(*args, **options)
        assert model_fingerprint(model) != fingerprint
        raise ArithmeticError(len(layers))

    monkeypatch.setattr("pruning.pipeline.prune_layers", fail)
    with pytest.raises(ArithmeticError):
        prune(model, None, calibration=windows, repair="bias", **OPTIONS)
    assert elsewhere(model) == before
    assert model_fingerprint(model) == fingerprint
    assert torch.equal(outputs(model, windows), expected)
    assert sorted(tmp_path.rglob("*")) == folder


def test_a_model_is_pruned_again_from_where_the_first_time_has_put_it(load, windows):
    whole, offloaded = load(), load(*LAYERS)
    for model in (whole, offloaded):
        for ratio in (0.25, 0.5):
            prune(model, None, calibration=windows, **OPTIONS | {"ratio": ratio})
    assert torch.equal(outputs(whole, windows), outputs(offloaded, windows))


def test_statistics_of_the_model_in_memory_are_those_of_the_offloaded_one(tmp_path, load, windows):
    whole, offloaded = load(), load(*PLACES)
    options = OPTIONS | {"repair": "lstsq"}
    prune(whole, None, calibration=windows, save_statistics=tmp_path / "measured.mi", **options)
    prune(offloaded, None, statistics=tmp_path / "measured.mi", **options)
    assert torch.equal(outputs(whole, windows), outputs(offloaded, windows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "kl"},
            "budget: expected 'uniform' or 'mi' for a model that is offloaded, got 'kl'",
        ),
        (
            {"criterion": "random-pairs", "candidates": 2},
            "candidates: expected 1 for a model that is offloaded, got 2",
        ),
    ],
)
def test_what_needs_all_layers_in_memory_is_refused_by_name(load, windows, options, message):
    with pytest.raises(ValueError, match=message):
        prune(load(*LAYERS), None, calibration=windows, **OPTIONS, **options)


def test_weights_on_disk_without_a_folder_for_others_are_refused(load, windows):
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp\..*: expected an offload folder .* offload_folder="
    ):
        prune(load("model.layers.1.mlp", offload_folder=None), None, calibration=windows, **OPTIONS)


def test_layers_that_cannot_be_brought_one_by_one_are_refused(windows):
    model = tiny("T5ForConditionalGeneration")
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(ValueError, match="expected all FFNs in one list of layers"):
        prune(model, None, calibration=windows, **OPTIONS)


def test_weights_that_a_hook_of_several_layers_brings_are_refused(windows):
    model = tiny_model("Llama")
    accelerate.cpu_offload(model, execution_device="cpu", preload_module_classes=["LlamaModel"])
    with pytest.raises(ValueError, match="one that a hook of accelerate at its own module brings"):
        prune(model, None, calibration=windows, **OPTIONS)


def test_weights_that_are_nowhere_and_a_sweep_are_refused(load, windows):
    with pytest.raises(ValueError, match="expected weights in memory, got none"):
        prune(tiny_model("Llama").to("meta"), None, calibration=windows, **OPTIONS)
    with pytest.raises(ValueError, match="as after offloading by accelerate"):
        sweep(load(*LAYERS), None, [0.25], calibration=windows, texts={}, **OPTIONS)
