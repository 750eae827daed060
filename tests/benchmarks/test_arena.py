"""LowRankArena's protocol: how texts become windows, and which accuracy counts."""

import gzip
import json

import pytest
import torch

from benchmarks.quality import arena


class Letters:
    """A tokenizer with a token for each character."""

    def __call__(self, text, **_options):
        return type("Encoding", (), {"input_ids": torch.tensor([[ord(letter) for letter in text]])})


def test_lines_are_joined_as_in_the_data_set_of_the_hub(tmp_path):
    file = tmp_path / "wiki.test.raw"
    file.write_text(" \n = Title = \n \n Some text . \n", encoding="utf-8")
    assert arena.wikitext(file) == "\n\n = Title = \n\n\n\n\n Some text . \n"


def test_only_the_first_documents_of_c4_are_read(tmp_path, monkeypatch):
    file = tmp_path / "c4.json.gz"
    with gzip.open(file, "wt", encoding="utf-8") as shard:
        shard.writelines(json.dumps({"text": text}) + "\n" for text in "abcd")
    monkeypatch.setattr(arena, "C4_DOCUMENTS", 3)
    assert arena.c4(file) == "a b c"


def test_windows_follow_each_other_without_a_rest(monkeypatch):
    monkeypatch.setattr(arena, "LENGTH", 4)
    found = arena.windows(Letters(), "abcdefghijk", None)
    assert ["".join(map(chr, window)) for window in found.tolist()] == ["abcd", "efgh"]
    assert len(arena.windows(Letters(), "abcdefghijk", 1)) == 1
    with pytest.raises(ValueError, match="expected at least 4 tokens, got 3"):
        arena.windows(Letters(), "abc", None)
