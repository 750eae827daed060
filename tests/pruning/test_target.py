"""A size in place of a ratio."""

import copy
import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from pruning import Settings, load_model, plan, prune, prune_folder, sweep
from pruning.choose.target import pruned_size, reach_target
from pruning.cli import main
from pruning.model.ffn import find_ffns
from pruning.model.size import count_parameters, weight_bytes
from pruning.planning.rates import Rates

from tiny import tiny, tiny_model, tiny_tokenizer

RATES = Rates(*[1e9] * 10)
OPTIONS = {"multiple_of": 2, "sample_size": 128}


def bytes_in(folder):
    return sum(t.nbytes for file in folder.glob("*.safetensors") for t in load_file(file).values())


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"repair": "bias"}),
        ("LlamaForCausalLM", {"budget": "mi"}),
        ("GPT2LMHeadModel", {}),  # tied embeddings
        ("Qwen2MoeForCausalLM", {"multiple_of": 4}),  # two knobs
        ("AlbertModel", {"repair": "lstsq"}),  # one FFN shared by all layers
        ("BartForConditionalGeneration", {"repair": "lstsq"}),  # a buffer that is saved
    ],
)
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_the_predicted_size_is_that_of_the_pruned_model(class_name, options, ratio, windows, tmp_path):
    model = tiny(class_name)
    settings = Settings(**OPTIONS | options, ratio=ratio)
    predicted = pruned_size(model, find_ffns(model), ratio, settings)
    prune(model, None, calibration=windows, settings=settings)
    assert predicted == (count_parameters(model), weight_bytes(model))
    model.save_pretrained(tmp_path)
    assert predicted.bytes == bytes_in(tmp_path)


def test_the_ratio_is_the_smallest_that_reaches_the_target(windows):
    dense = tiny_model("Llama")
    per_step = 3 * 3 * 16 * 2  # parameters of 2 neurons: 3 projections of 16 values in 3 layers
    for target, n_drop in ((count_parameters(dense) - 1, 2), (count_parameters(dense) - 4 * per_step, 8)):
        model = tiny_model("Llama")
        report = prune(model, None, calibration=windows, target_params=target, **OPTIONS)
        assert report.widths == [40 - n_drop] * 3
        assert report.settings["ratio"] == n_drop / 40
        assert count_parameters(model) <= target < count_parameters(model) + per_step


@pytest.mark.parametrize(
    ("class_name", "widths"),
    [
        ("BartForConditionalGeneration", {"encoder_ffn_dim": 16, "decoder_ffn_dim": 48}),
        ("BartForConditionalGeneration", {"encoder_ffn_dim": 48, "decoder_ffn_dim": 12}),
        ("Qwen2MoeForCausalLM", {"shared_expert_intermediate_size": 200}),
    ],
)
def test_the_smallest_ratio_is_found_where_ffns_have_several_widths(class_name, widths):
    """Of all thousandths that the rounding allows."""
    model = tiny(class_name, **widths)
    ffns, settings = find_ffns(model), Settings(multiple_of=4)
    sizes = {}
    for ratio in (i / 1000 for i in range(1, 1000)):
        with suppress(ValueError):  # an FFN would keep all neurons, or none
            sizes[ratio] = pruned_size(model, ffns, ratio, settings).parameters
    for target in (max(sizes.values()), sum(sizes.values()) // len(sizes), min(sizes.values())):
        found = reach_target(model, ffns, Settings(multiple_of=4, target_params=target))
        expected = next(size for size in sizes.values() if size <= target)
        assert pruned_size(model, ffns, found.ratio, settings).parameters == expected
    with pytest.raises(ValueError, match=f"expected at least {min(sizes.values()):,} parameters"):
        reach_target(model, ffns, Settings(multiple_of=4, target_params=min(sizes.values()) - 1))


def test_sizes_of_a_result_with_several_widths_are_those_of_pruning_it_again(windows, tmp_path):
    model = tiny("LlamaForCausalLM")
    prune(model, None, calibration=windows, budget="mi", ratio=0.2, **OPTIONS)
    widths = [ffn.width for ffn in find_ffns(model)]
    assert len(set(widths)) > 1
    model.save_pretrained(tmp_path)
    planned = plan(tmp_path, settings=Settings(ratio=0.5, **OPTIONS), rates=RATES, from_disk=False).shapes
    swept = sweep(copy.deepcopy(model), None, [0.5], calibration=windows, texts={}, **OPTIONS)
    predicted = pruned_size(model, find_ffns(model), 0.5, Settings(**OPTIONS))
    assert planned.parameters[0] == count_parameters(model)
    prune(model, None, calibration=windows, ratio=0.5, **OPTIONS)
    assert [ffn.width for ffn in find_ffns(model)] == pytest.approx([width / 2 for width in widths], abs=1)
    after = count_parameters(model)
    assert (predicted.parameters, planned.parameters[1], swept[-1].parameters) == (after, after, after)


@pytest.mark.parametrize("field", ["target_params", "target_bytes"])
def test_what_cannot_be_reached_is_refused_with_the_number_that_can(field, windows):
    model = tiny_model("Llama")
    dense = count_parameters(model) * (1 if field == "target_params" else 4)
    least = dense - 38 * 3 * 3 * 16 * (1 if field == "target_params" else 4)
    prune_it = {"calibration": windows, **OPTIONS}
    with pytest.raises(ValueError, match=f"{field}: expected at least {least:,} .* got {least - 1:,}"):
        prune(model, None, **{field: least - 1}, **prune_it)
    with pytest.raises(ValueError, match=f"{field}: expected less than the {dense:,} .* got {dense:,}"):
        prune(model, None, **{field: dense}, **prune_it)
    prune(model, None, **{field: least}, **prune_it)
    assert model.config.intermediate_size == 2


def test_a_cap_limits_what_can_be_reached(windows):
    model = tiny_model("Llama")
    with pytest.raises(ValueError, match=r"target_params: expected at least .* at ratio=0\.5"):
        prune(model, None, calibration=windows, target_params=1, budget="mi", max_layer_ratio=0.5, **OPTIONS)


def test_two_targets_are_refused():
    with pytest.raises(ValueError, match="target_bytes: expected none beside target_params"):
        Settings(target_params=10, target_bytes=10)


@pytest.mark.parametrize("from_disk", [False, True])
def test_bytes_are_those_of_the_saved_file(tmp_path, monkeypatch, from_disk):
    """Also where the stored dtype is not the one to compute in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pruning.model.precision.working_dtype", lambda _device: torch.float32)
    tiny_model("Llama").to(torch.bfloat16).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    target = bytes_in(tmp_path / "model") - 5000
    command = ["model", "--out=out", f"--target-bytes={target}", "--multiple-of=2", "--device=cpu", "--quiet"]
    sizes = ["--sequence-length=32", "--calibration-tokens=512", "--calibration=text.txt"]
    assert main([*command, *sizes, *["--from-disk"] * from_disk]) == 0
    assert target - 2 * 3 * 3 * 16 * 2 < bytes_in(tmp_path / "out") <= target
    settings = json.loads((tmp_path / "out" / "mi_prune.json").read_text())["settings"]
    assert settings["target_bytes"] == target
    assert load_model("out")[0].config.intermediate_size == round(40 * (1 - settings["ratio"]))


def test_the_folder_is_untouched_if_the_target_cannot_be_reached(tmp_path, windows):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="target_params: expected at least"):
        prune_folder(
            tmp_path / "model",
            tmp_path / "out",
            calibration=windows,
            settings=Settings(target_params=1, **OPTIONS),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
