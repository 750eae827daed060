"""Models whose weights accelerate has put elsewhere."""

import re

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning import prune
from pruning.model.ffn import find_ffns

from tiny import tiny_model

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


@pytest.fixture
def load(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path / "model")

    def from_folder(*on_disk):
        places = {place: "disk" if place in on_disk else "cpu" for place in PLACES}
        options = {"device_map": places, "offload_folder": tmp_path / "offloaded"} if on_disk else {}
        return AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)

    return from_folder


@pytest.mark.parametrize("repair", ["sequential", "lstsq"])
@pytest.mark.parametrize("place", ["lm_head", "model.layers.1.self_attn"])
def test_what_is_not_pruned_may_be_elsewhere(place, repair, load, windows):
    whole, offloaded = load(), load(place)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    for model in (whole, offloaded):
        prune(model, None, calibration=windows, repair=repair, **OPTIONS)
    for one, other in zip(find_ffns(whole), find_ffns(offloaded), strict=True):
        for projection, same in zip(one.projections, other.projections, strict=True):
            assert torch.equal(projection.weight, same.weight)


@pytest.mark.parametrize("place", ["model.layers.2", "model.layers.1.mlp", "model.embed_tokens"])
def test_ffns_and_embeddings_elsewhere_are_refused_in_one_true_line(place, load, windows):
    model = load(place)
    message = "expected weights in memory, got none, as after offloading by accelerate; .*prune_folder"
    with pytest.raises(ValueError, match=f"^{re.escape(place)}.*: {message}"):
        prune(model, None, calibration=windows, **OPTIONS)


def test_a_model_that_was_offloaded_later_is_refused(load, windows):
    model = load()
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(ValueError, match="as after offloading by accelerate"):
        prune(model, None, calibration=windows, **OPTIONS)
