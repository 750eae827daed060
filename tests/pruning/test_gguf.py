"""A GGUF file is pruned from disk, one layer at a time."""

import json

import pytest
import torch
from results import weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pruning import Settings, load_model, prune, prune_folder
from pruning.model.gguf_tokenizer import check_gguf_tokenizer
from pruning.model.on_disk import open_folder
from pruning.report.save import save_pruned

from tiny import tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf")
OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}


def write_gguf(path, *, experts=False, bos=None, pre=None):
    """A Llama of 3 layers with random weights, some of them in blocks of 8 bits.

    Args:
        bos: whether the file says that texts begin with BOS; it says nothing for None.
        pre: the pre-tokenizer that it names, if any.
    """
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
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if bos is not None:
        writer.add_add_bos_token(bos)
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


@pytest.fixture
def read_wrongly(monkeypatch):
    """Lets a function change each tokenizer as transformers loads it; returns how to set that function."""
    load = AutoTokenizer.from_pretrained

    def set_change(change):
        def load_and_change(*args, **options):
            tokenizer = load(*args, **options)
            return change(tokenizer) or tokenizer

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_and_change)

    return set_change


def tokenizer_of(source, *, from_disk=False):
    if from_disk:
        return open_folder(source, dtype=torch.float32, device="cpu").tokenizer
    return load_model(str(source), dtype=torch.float32, device="cpu")[1]


@pytest.mark.parametrize("from_disk", [False, True])
@pytest.mark.parametrize("stated", [True, False, None])
@pytest.mark.parametrize("read", [True, False])
def test_a_text_begins_with_bos_if_the_file_says_so(tmp_path, read_wrongly, stated, read, from_disk):
    """Whatever transformers makes of it."""
    source = write_gguf(tmp_path / "tiny.gguf", bos=stated)
    read_wrongly(lambda tokenizer: setattr(tokenizer, "add_bos_token", read))
    tokenizer = tokenizer_of(source, from_disk=from_disk)
    assert (tokenizer("ab").input_ids[0] == tokenizer.bos_token_id) == (read if stated is None else stated)
    assert tokenizer("ab", add_special_tokens=False).input_ids == [258]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert again("ab").input_ids == tokenizer("ab").input_ids


def test_bos_and_eos_are_those_of_the_file(tmp_path, read_wrongly):
    """transformers 5.17 takes BOS for EOS in files of the architecture llama."""
    source = write_gguf(tmp_path / "tiny.gguf")
    read_wrongly(lambda tokenizer: setattr(tokenizer, "eos_token", tokenizer.bos_token))
    tokenizer = tokenizer_of(source)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("qwen2", False)])
def test_a_file_that_says_nothing_of_bos_is_read_as_by_llama_cpp(tmp_path, read_wrongly, pre, begins):
    source = write_gguf(tmp_path / "tiny.gguf", pre=pre)
    read_wrongly(lambda tokenizer: setattr(tokenizer, "add_bos_token", False))
    tokenizer = tokenizer_of(source)
    assert (tokenizer("ab").input_ids[0] == 1) == begins


def word_tokenizer(merges):
    words = ["abc", "abcd", "bcd"]
    tokens = ["<pad>", "<s>", "</s>", "\u2581", "a", "b", "c", "d", "ab", "cd", *words]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), bos_token="<s>", eos_token="</s>")


WORDS = [("a", "b"), ("ab", "c"), ("abc", "d"), ("c", "d"), ("b", "cd")]


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_tokenizer_that_cuts_the_words_of_its_vocabulary_is_refused(tmp_path, read_wrongly, from_disk):
    """As transformers 5.17 does with Gemma 3: the vocabulary is there, and merges are lost."""
    source = write_gguf(tmp_path / "tiny.gguf")
    read_wrongly(lambda _: word_tokenizer(WORDS[:1]))
    with pytest.raises(
        ValueError, match=r"tiny\.gguf: expected .* got 3 of 3 that it cuts, such as 'abc' into \['ab"
    ):
        tokenizer_of(source, from_disk=from_disk)


def test_words_that_are_cut_only_behind_a_space_are_whole(tmp_path):
    """As in Llama 2 and Mistral: a text begins with a space, and most words of letters alone are inner pieces."""
    source = write_gguf(tmp_path / "tiny.gguf")
    tokenizer = word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    assert len(tokenizer("abc", add_special_tokens=False).input_ids) > 1
    tokens = tokenizer.bos_token, tokenizer.eos_token
    check_gguf_tokenizer(source, tokenizer)
    assert tokens == (tokenizer.bos_token, tokenizer.eos_token)


def test_a_tokenizer_that_cannot_begin_with_bos_is_refused(tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", bos=True)
    tokenizer = word_tokenizer(WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tokenizer), "add_bos_token", False)
        with pytest.raises(ValueError, match=r"tiny\.gguf: expected a tokenizer with BOS in front of a text"):
            check_gguf_tokenizer(source, tokenizer)


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
