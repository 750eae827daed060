"""Windows begin with what the tokenizer puts in front of a text by itself, and with nothing else."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from pruning import prune
from pruning.cli import main
from pruning.observe.text import beginning, token_windows
from pruning.report.quality import Perplexity

from tiny import outputs, tiny_model, tiny_tokenizer

TEXT = "All happy families are alike; each unhappy family is unhappy in its own way. " * 40
COMMON = {
    "ratio": 0.25,
    "multiple_of": 2,
    "sequence_length": 32,
    "calibration_tokens": 1024,
    "sample_size": 128,
}


@pytest.fixture
def with_bos():
    """A tokenizer that puts <s> (1) in front of every text, and nothing behind it."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def test_the_beginning_is_what_the_tokenizer_adds_in_front(with_bos, tokenizer):
    assert beginning(with_bos) == [1]
    assert beginning(tokenizer) == []
    with_bos._tokenizer.post_processor = TemplateProcessing(
        single="<s> <unk> $A </s>", special_tokens=[("<s>", 1), ("<unk>", 3), ("</s>", 2)]
    )
    assert beginning(with_bos) == [1, 3]


def test_every_window_begins_with_bos_and_no_text_is_lost(with_bos, tokenizer):
    windows = token_windows(with_bos, TEXT, 16)
    plain = torch.tensor(tokenizer(TEXT)["input_ids"])
    assert (windows[:, 0] == 1).all()
    assert torch.equal(windows[:, 1:].flatten(), plain[: len(plain) // 15 * 15])


def test_without_bos_or_a_tokenizer_that_adds_it_windows_are_the_plain_text(with_bos, tokenizer):
    expected = torch.tensor(tokenizer(TEXT)["input_ids"][: len(TEXT) // 16 * 16]).view(-1, 16)
    assert torch.equal(token_windows(with_bos, TEXT, 16, bos=False), expected)
    assert torch.equal(token_windows(tokenizer, TEXT, 16), expected)
    assert torch.equal(token_windows(tokenizer, TEXT, 16, bos=False), expected)


@pytest.mark.parametrize("options", [{}, {"budget": "kl", "repair": "lstsq"}], ids=["sequential", "kl"])
@pytest.mark.parametrize("bos", [True, False])
def test_pruning_on_text_equals_pruning_on_these_windows(with_bos, bos, options, windows):
    ids = token_windows(with_bos, TEXT, 32, limit=32, bos=bos)
    found = []
    for calibration in (TEXT, ids):
        model = tiny_model("Llama")
        report = prune(model, with_bos, calibration=calibration, bos=bos, **COMMON | options)
        assert json.loads(report.manifest())["settings"]["bos"] is bos
        found.append(outputs(model, windows))
    assert torch.equal(*found)


@pytest.mark.parametrize("bos", [True, False])
def test_the_command_evaluates_and_verifies_on_windows_with_bos(with_bos, bos, tmp_path, monkeypatch, capsys):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    with_bos.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    seen = []
    monkeypatch.setattr(
        "pruning.comparing.reload_difference",
        lambda _model, _folder, inputs: seen.append(inputs["input_ids"].clone()) or 0.0,
    )
    evaluated = []
    monkeypatch.setattr(
        "pruning.report.comparison.perplexity",
        lambda _model, batches: evaluated.extend(batches) or Perplexity(torch.ones(2, dtype=torch.float64)),
    )
    text, switch = tmp_path / "text.txt", () if bos else ("--no-bos",)
    options = (
        "--calibration",
        text,
        "--sequence-length=32",
        "--multiple-of=2",
        "--sample-size=128",
        "--verify",
        "--quiet",
        *switch,
    )
    for out, more in (("a", ("--evaluate", text)), ("b", ())):
        assert main([str(a) for a in (tmp_path / "model", "--out", tmp_path / out, *options, *more)]) == 0
    assert len(evaluated) > 2
    for ids in (*seen, *evaluated):
        assert bool((ids[:, 0] == 1).all()) is bos
