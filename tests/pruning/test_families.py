import re

import pytest
import transformers

from pruning.model.ffn import find_ffns

from tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_one_ffn_in_the_order_of_the_model(family):
    ffns = find_ffns(tiny_model(family))
    assert [ffn.width for ffn in ffns] == [40, 40, 40]
    layers = [re.search(r"\.(\d)(\.mlp)?$", ffn.name).group(1) for ffn in ffns]
    assert layers == ["0", "1", "2"]
    assert all(len(ffn.inputs) == (1 if family == "Bert" else 2) for ffn in ffns)


def test_classes_with_a_bias_or_a_switch_for_it_can_store_one():
    stores = {family: find_ffns(tiny_model(family))[0].can_store_bias for family in FAMILIES}
    assert stores == {"Llama": True, "Mistral": False, "Qwen2": False, "Qwen3": False, "Bert": True}


def test_an_architecture_whose_config_does_not_set_the_width_is_an_error():
    config = transformers.BloomConfig(vocab_size=32, hidden_size=8, n_layer=1, n_head=1)
    with pytest.raises(
        ValueError, match=r"BloomForCausalLM: expected a config entry that sets the width .*, got none"
    ):
        find_ffns(transformers.BloomForCausalLM(config))


def test_a_width_that_differs_from_the_config_is_an_error():
    model = tiny_model("Llama")
    model.config.intermediate_size = 41
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp: expected 41 neurons as intermediate_size .* got 40"
    ):
        find_ffns(model)
