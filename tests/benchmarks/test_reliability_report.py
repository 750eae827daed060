"""The reliability benchmark itself, on a tiny model: rows, table and plot."""

import sys

import pytest

from benchmarks import reliability, reliability_report

from tiny import VOCABULARY, tiny_model


class Bytes:
    """A tokenizer of one token a byte."""

    def __call__(self, text, **options):
        return {"input_ids": [byte % VOCABULARY for byte in text.encode()]}

    def num_special_tokens_to_add(self):
        return 0


@pytest.fixture
def rows(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + i * i % 90) for i in range(700)))
    monkeypatch.setattr(reliability, "load_model", lambda name: (tiny_model("Llama"), Bytes()))
    sizes = ["--layers", "0", "2", "--neurons", "8", "--tokens", "64", "256", "512"]
    options = [*sizes, "--estimators", "grid", "kde", "linear"]
    out = tmp_path / "reliability.jsonl"
    monkeypatch.setattr(sys, "argv", ["reliability", "tiny", str(text), *options, f"--out={out}"])
    reliability.main()
    return out


def test_rows_table_and_plot(rows):
    curves = reliability_report.load(rows)
    assert list(curves) == ["grid", "kde", "linear"]
    assert curves["grid"].agreement.shape == (2, 3)
    assert (abs(curves["grid"].agreement) <= 1).all()
    assert (curves["kde"].seconds > 0).all()
    text = rows.with_suffix(".md").read_text()
    assert "All pairs of 8 neurons of tiny, layers 0, 2" in text
    assert rows.with_suffix(".png").stat().st_size > 0
    reliability_report.write(rows)
    assert rows.with_suffix(".md").read_text() == text


def test_what_would_be_too_slow_is_left_out(rows, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(reliability.time, "perf_counter", lambda: next(clock))
    x = reliability.torch.randn(512, 5)
    assert list(reliability.measure("kde", x, (64, 128, 512), cap=10)) == [64, 128]
    assert list(reliability.measure("grid", x, (64, 128, 512), cap=10)) == [64, 128, 512]
