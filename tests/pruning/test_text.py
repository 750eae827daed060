import pydoc_data.topics
import sys

import pytest
import torch
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pruning.observe.sequences import token_sequences
from pruning.observe.sources import Records
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.report.quality import check_prompt

from tiny import tiny_model, tiny_tokenizer


def test_the_builtin_halves_are_long_and_disjoint(all_topics, monkeypatch):
    monkeypatch.setattr(pydoc_data.topics, "topics", all_topics)
    calibration, evaluation = builtin_text()
    assert min(len(calibration), len(evaluation)) > 100_000
    assert calibration[-2000:] not in evaluation
    assert evaluation[:2000] not in calibration


def test_windows_are_consecutive_pieces_of_the_text(tokenizer):
    text = "abcdefghij" * 10
    windows = token_windows(tokenizer, text, 16)
    assert windows.shape == (6, 16)
    assert torch.equal(windows.flatten(), torch.tensor(tokenizer(text)["input_ids"][:96]))


def test_a_limit_spreads_the_windows_over_the_text(tokenizer):
    text = "abcdefghij" * 10
    windows = token_windows(tokenizer, text, 16)
    assert torch.equal(token_windows(tokenizer, text, 16, limit=2), windows[[0, 3]])
    assert torch.equal(token_windows(tokenizer, text, 16, limit=9), windows)


def test_windows_for_encoders_have_special_tokens(tokenizer):
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    try:
        windows = token_windows(tokenizer, "abcdefghij" * 10, 16, special_tokens=True)
    finally:
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert windows.shape == (7, 16)
    assert (windows[:, 0] == 1).all()
    assert (windows[:, -1] == 2).all()


def test_windows_of_an_alphabet_without_small_letters_have_special_tokens_at_both_ends():
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *"ACGT"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    windows = token_windows(tokenizer, "ACGTAC" * 3, 8, special_tokens=True)
    assert windows.tolist() == [[0, 2, 3, 4, 5, 2, 3, 1]] * 3


@pytest.mark.parametrize("topics", [{}, {"assert": "short"}, None])
def test_a_python_without_the_builtin_text_is_named(monkeypatch, topics):
    if topics is None:
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    else:
        monkeypatch.setattr(pydoc_data.topics, "topics", topics)
    with pytest.raises(
        ValueError, match=r"builtin text: expected the language reference .* got [05] in pydoc_data"
    ):
        builtin_text()


def test_the_error_for_a_missing_empty_or_binary_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_text(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"empty\.txt: expected text, got an empty file"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    with pytest.raises(ValueError, match="expected UTF-8 text, got byte 0xff at 3"):
        read_text(tmp_path / "binary")


def test_text_that_is_too_short_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="text: expected at least 16 tokens, got 3"):
        token_windows(tokenizer, "abc", 16)
    with pytest.raises(ValueError, match="expected windows of at least 2 tokens, got 1"):
        token_windows(tokenizer, "abc", 1)


@pytest.mark.parametrize("cuts", [False, True])
def test_what_the_tokenizer_saves_about_truncation_and_padding_stays(cuts):
    """Programs that read `tokenizer.json` without transformers cut and pad as it says."""
    tokenizer = tiny_tokenizer()
    if cuts:
        tokenizer.backend_tokenizer.enable_truncation(128, stride=3)
        tokenizer.backend_tokenizer.enable_padding(length=128)
    before = tokenizer.backend_tokenizer.to_str()
    token_windows(tokenizer, "abcdefghij" * 10, 16)
    assert tokenizer.backend_tokenizer.to_str() == before
    token_windows(tokenizer, "abcdefghij" * 10, 16, special_tokens=True)
    assert tokenizer.backend_tokenizer.to_str() == before
    options = {"length": 16, "n_tokens": 64, "special_tokens": False, "bos": True}
    token_sequences(Records("texts", ["abcdefghij" * 10] * 4), tokenizer, **options)
    assert tokenizer.backend_tokenizer.to_str() == before
    check_prompt("abc", tiny_model("Llama"), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
