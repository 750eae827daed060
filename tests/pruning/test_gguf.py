"""A GGUF file is pruned from disk, one layer at a time."""

import json

import pytest
import torch
from results import weights

from pruning import Settings, load_model, prune, prune_folder
from pruning.report.save import save_pruned

from tiny import tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf")
OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}


def write_gguf(path, *, experts=False):
    """A Llama of 3 layers with random weights, some of them in blocks of 8 bits."""
    model, vocabulary = (
        tiny_model("Llama", hidden_size=32, width=64, head_dim=16),
        tiny_tokenizer().get_vocab(),
    )
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(vocabulary, key=vocabulary.__getitem__)[:-2], "ab", "ba"])
    writer.add_token_merges(["a b", "b a"])  # of a list with one, transformers reads the only element
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        stem, _, ending = name.rpartition(".")
        stored = value.numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if "mlp" in name or "self_attn" in name else None
        if kind is not None and stored.shape[-1] % 32 == 0:
            stored = gguf.quants.quantize(stored, kind)
            writer.add_tensor(f"{names.get_name(stem)}.{ending}", stored, raw_dtype=kind)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{ending}", stored)
    if experts:
        writer.add_tensor("blk.0.ffn_up_exps.weight", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.filterwarnings("ignore:calibration. expected at least 4 tokens")
def test_the_result_from_disk_is_that_in_memory_bit_for_bit(tmp_path, windows):
    source, windows = write_gguf(tmp_path / "tiny.gguf"), windows[:8]
    model, tokenizer = load_model(str(source), dtype=torch.float32, device="cpu")
    report = prune(model, tokenizer, calibration=windows, **OPTIONS)
    save_pruned(model, tokenizer, report, tmp_path / "memory")
    options = {"settings": Settings(**OPTIONS), "dtype": torch.float32, "device": "cpu"}
    prune_folder(source, tmp_path / "disk", calibration=windows, **options)
    first, second = weights(tmp_path / "memory"), weights(tmp_path / "disk")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert second["model.layers.2.mlp.down_proj.weight"].shape == (32, 48)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        documents = [json.loads((tmp_path / out / name).read_text()) for out in ("memory", "disk")]
        assert documents[0] == documents[1]


def test_stacked_experts_are_refused_and_nothing_is_left(tmp_path, windows):
    source = write_gguf(tmp_path / "tiny.gguf", experts=True)
    with pytest.raises(ValueError, match=r"expected a tensor for each weight .* load it into memory"):
        prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, windows):
    source = write_gguf(tmp_path / "tiny.gguf")
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"tiny\.gguf: expected a GGUF file that transformers can read, got: "
    ):
        prune_folder(source, tmp_path / "disk", calibration=windows, settings=Settings(**OPTIONS))
    with pytest.raises(
        ValueError, match=r"tiny\.gguf: expected a GGUF file that transformers can read, got: "
    ):
        load_model(str(source), device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
