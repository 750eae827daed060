"""Checkpoints with quantized weights are pruned as their de-quantized weights."""

import json
import shutil

import pytest
import torch
from results import weights
from safetensors.torch import save_file

from pruning import Settings, load_model, plan, prune, prune_folder
from pruning.report.save import save_pruned

from tiny import tiny, tiny_model, tiny_tokenizer

SETTINGS = Settings(ratio=0.25, multiple_of=4, sample_size=64)
BLOCK = 8
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The non-negative values of E2M1 in the order of their codes (OCP Microscaling Formats 1.0); bit 3 is the sign."""


def write(folder, like, tensors, quantization=None):
    """A folder with the config of the folder `like` and these weights."""
    folder.mkdir()
    config = json.loads((like / "config.json").read_text())
    if quantization:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tiny_tokenizer().save_pretrained(folder)
    return folder


def in_fp8(tensors):
    """Each projection in 8 bits with a scale for each block, and what that stands for."""
    stored, meant = dict(tensors), dict(tensors)
    for name, value in tensors.items():
        if "proj.weight" not in name:
            continue
        rows, columns = value.shape
        blocks = value.float().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        small = (blocks / scale).to(torch.float8_e4m3fn)
        stored[name] = small.reshape(rows, columns)
        stored[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
        meant[name] = (small.float() * scale).reshape(rows, columns)
    return stored, meant


def in_mxfp4(tensors):
    """The experts in 4 bits with a power of two for each 32 values, and what that stands for."""
    stored, meant = {}, dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = value
            continue
        experts, inner, outer = value.shape  # stored with the inner dimension last, in blocks of 32
        codes = torch.randint(16, (experts, outer, inner // 32, 32), generator=generator)
        exponents = torch.randint(118, 122, (experts, outer, inner // 32), generator=generator)
        stored[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = exponents.to(torch.uint8)
        values = FP4[codes % 8] * (1 - 2 * (codes // 8)) * (2.0 ** (exponents - 127))[..., None]
        meant[name] = values.flatten(2).transpose(1, 2).contiguous()
    return stored, meant


@pytest.mark.parametrize(
    ("class_name", "sizes", "dtype", "quantize", "quantization"),
    [
        ("LlamaForCausalLM", {}, torch.float32, in_fp8, FP8),
        ("Qwen2MoeForCausalLM", {}, torch.float32, in_fp8, FP8),
        (
            "GptOssForCausalLM",
            {"hidden_size": 32, "intermediate_size": 32},
            torch.bfloat16,  # that of all weights
            in_mxfp4,
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        ),
    ],
)
def test_they_are_pruned_as_what_they_stand_for(
    tmp_path, windows, class_name, sizes, dtype, quantize, quantization
):
    tiny(class_name, **sizes).to(dtype).save_pretrained(tmp_path / "like")
    stored, meant = quantize(weights(tmp_path / "like"))
    source = write(tmp_path / "stored", tmp_path / "like", stored, quantization)
    dense = write(tmp_path / "meant", tmp_path / "like", meant)
    options = {"calibration": windows, "settings": SETTINGS}
    prune_folder(dense, tmp_path / "expected", device="cpu", dtype=dtype, **options)
    prune_folder(source, tmp_path / "disk", device="cpu", dtype=dtype, **options)
    model, tokenizer = load_model(str(source), device="cpu", dtype=dtype)
    save_pruned(model, tokenizer, prune(model, tokenizer, **options), tmp_path / "memory", source=source)
    expected = weights(tmp_path / "expected")
    for out in (tmp_path / "disk", tmp_path / "memory"):
        found = weights(out)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_kinds_that_transformers_does_not_unpack_are_refused_by_name(tmp_path):
    model = tiny_model("Llama")
    model.save_pretrained(tmp_path / "like")
    source = write(
        tmp_path / "stored",
        tmp_path / "like",
        weights(tmp_path / "like"),
        {"quant_method": "awq", "bits": 4},
    )
    (source / "model.safetensors").write_bytes(b"")  # before the weights are read
    shutil.rmtree(tmp_path / "like")
    for call in (load_model, plan, lambda folder: prune_folder(folder, tmp_path / "out")):
        with pytest.raises(
            ValueError, match=r"expected weights that transformers de-quantizes \(.*fp8.*got .*awq"
        ):
            call(str(source))
