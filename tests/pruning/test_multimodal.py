"""Models of text and images: the FFNs of the text model are pruned, and the result loads whatever its budget."""

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

from pruning import load_model, prune
from pruning.cli import main
from pruning.model.ffn import find_ffns
from pruning.model.size import count_parameters

from tiny import masked, reload_here, tiny_tokenizer

IMAGE = 259
TEXT = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def llava():
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=16)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_index=IMAGE
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, sliding_window=32),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def qwen2_vl():
    text = TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 8}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE)
    )


@pytest.fixture(params=[llava, gemma3, qwen2_vl], ids=["llava", "gemma3", "qwen2_vl"])
def multimodal(request):
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", [llava, gemma3])
def test_outputs_for_images_are_those_of_the_dense_model_with_silent_neurons(family, windows):
    torch.manual_seed(0)
    dense = family().eval()
    pruned = family().eval()
    pruned.load_state_dict(dense.state_dict())
    windows = windows.clamp(max=IMAGE - 1)
    report = prune(pruned, None, calibration=windows, ratio=0.25, repair="none", multiple_of=2)
    assert [layer.name for layer in report.layers] == [
        f"model.language_model.layers.{i}.mlp" for i in range(2)
    ]
    ids = torch.cat([torch.full((3, 4), IMAGE), windows[:3]], dim=1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(3, 3, 16, 16)}
    with torch.no_grad():
        expected = masked(dense, report)(**inputs).logits
        torch.testing.assert_close(pruned(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(dense(**inputs).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("budget", ["uniform", "kl"])
def test_the_command_saves_what_loads_with_the_same_outputs(
    multimodal, tmp_path, windows, monkeypatch, budget
):
    reload_here(monkeypatch)
    folder, out = tmp_path / "model", tmp_path / "out"
    multimodal.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("All happy families are alike. " * 100)
    options = [
        "--sequence-length=32",
        "--calibration-tokens=512",
        "--multiple-of=2",
        "--ratio=0.25",
        "--quiet",
    ]
    assert (
        main(
            [
                str(folder),
                "--out",
                str(out),
                f"--budget={budget}",
                "--calibration",
                str(text),
                *options,
                "--verify",
            ]
        )
        == 0
    )
    loaded = load_model(str(out), device="cpu")[0]
    assert type(loaded) is type(multimodal)
    widths = [ffn.width for ffn in find_ffns(loaded) if "language_model" in ffn.name]
    assert sum(widths) == 60
    after, before = loaded.state_dict(), multimodal.state_dict()
    assert after.keys() == before.keys()
    assert all(
        torch.equal(after[name], before[name]) for name in before if "language_model.layers" not in name
    )
    assert loaded(input_ids=windows[:2].clamp(max=IMAGE - 1)).logits.isfinite().all()
    if budget == "uniform":
        stock = AutoModelForImageTextToText.from_pretrained(out)
        assert all(torch.equal(stock.state_dict()[name], weight) for name, weight in after.items())


def test_a_target_is_reached_by_the_ffns_that_the_calibration_reaches(windows):
    model = llava()
    text = [ffn for ffn in find_ffns(model) if "vision" not in ffn.name]
    assert 0 < len(text) < len(find_ffns(model))
    per_neuron = sum(sum(p.weight.numel() for p in ffn.projections) // ffn.width for ffn in text)
    target = count_parameters(model) - 6 * per_neuron
    prune(model, None, calibration=windows, target_params=target, multiple_of=2)
    assert count_parameters(model) == target
