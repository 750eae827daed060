"""The reliability benchmark on a tiny model: rows, and the tables made of them."""

import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import record
from benchmarks.publish import reliability as page
from benchmarks.reliability import __main__ as reliability

from tiny import VOCABULARY, tiny_model


class Bytes:
    """A tokenizer with one token per byte."""

    def __call__(self, text, **options):
        return {"input_ids": [byte % VOCABULARY for byte in text.encode()]}

    def num_special_tokens_to_add(self):
        return 0


@pytest.fixture
def rows(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + i * i % 90) for i in range(700)))
    monkeypatch.setattr(reliability, "load_model", lambda name: (tiny_model("Llama"), Bytes()))
    sizes = ["--layers", "0", "2", "--neurons", "8", "--tokens", "64", "256", "512"]
    options = [*sizes, "--estimators", "grid", "kde", "linear"]
    out = tmp_path / "reliability.jsonl"
    monkeypatch.setattr(sys, "argv", ["reliability", "tiny", str(text), *options, f"--out={out}"])
    reliability.main()
    return out


def test_rows_make_tables(rows, tmp_path):
    stored = record.load(rows)
    curves = page.curves(stored)
    assert list(curves) == ["grid", "kde", "linear"]
    assert curves["grid"].tokens == [32, 128, 256]
    first = next(r for r in stored if r["case"]["estimator"] == "grid" and r["case"]["M"] == 64)
    assert curves["grid"].agreement[0, 0] == first["result"]["halves"]
    line = next(x for x in page.agreement_table(curves).splitlines() if x.startswith("| grid"))
    assert line.count(f"**{curves['grid'].agreement[:, 2].mean():.3f}**") == 1
    page.publish(rows, tmp_path)
    assert "All pairs of 8 neurons of tiny, layers 0, 2" in (tmp_path / "reliability.md").read_text()


def test_matrices_that_would_be_too_slow_are_left_out(monkeypatch):
    clock = iter(range(1000))  # every call takes a second
    monkeypatch.setattr(record, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    x = torch.randn(512, 5)
    assert list(reliability.measure("kde", x, (64, 128, 512), cap=10)) == [64, 128]
    assert list(reliability.measure("grid", x, (64, 128, 512), cap=10)) == [64, 128, 512]


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="text: expected at least 512 tokens, got 64"):
        reliability.activations(tiny_model("Llama"), Bytes(), "a" * 70, [0], 512, 4, 0)
