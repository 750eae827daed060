"""The reliability benchmark on a tiny model: rows, and the tables made of them."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import record
from benchmarks.publish import reliability as page
from benchmarks.reliability import __main__ as reliability
from benchmarks.reliability import null_rates, rectified
from mikernels import null_distribution

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


def test_rates_of_a_null(tmp_path, monkeypatch):
    """Series with memory exceed a null of independent samples far too often, and one of shifts does not."""
    out = tmp_path / "null.jsonl"
    options = ["--estimators", "grid", "--data", "iid", "ar 0.9", "--samples", "200", "--variables", "60"]
    monkeypatch.setattr(sys, "argv", ["null_rates", *options, f"--out={out}"])
    monkeypatch.setattr(
        null_rates, "null_distribution", lambda m, **keywords: null_distribution(m, draws=20_000, **keywords)
    )
    null_rates.main()
    found = {(r["case"]["data"], r["case"]["null"]): r["result"]["rates"]["0.05"] for r in record.load(out)}
    assert len(found) == 3
    assert found["iid", "null_distribution"] == pytest.approx(0.05, abs=0.02)
    assert found["ar 0.9", "null_distribution"] > 0.3
    assert found["ar 0.9", "shifted_null"] < 0.15


def test_series_have_their_memory():
    x = null_rates.independent("ar 0.5", 5000, 4, 0)
    assert float(torch.corrcoef(torch.stack([x[1:, 0], x[:-1, 0]]))[0, 1]) == pytest.approx(0.5, abs=0.05)
    assert float(x.var()) == pytest.approx(1, abs=0.1)


def test_rectified_neurons_are_compared_with_and_without_atoms(tmp_path, monkeypatch):
    text, out = tmp_path / "text.txt", tmp_path / "rectified.jsonl"
    text.write_text("".join(chr(33 + i * i % 90) for i in range(1100)))
    monkeypatch.setattr(rectified, "load_model", lambda name: (tiny_model("Llama"), Bytes()))
    monkeypatch.setattr(rectified, "WINDOW", 32)
    sizes = ["--layers", "0", "1", "--neurons", "16", "--samples", "256", "--tokens", "1024"]
    monkeypatch.setattr(sys, "argv", ["rectified", "tiny", str(text), *sizes, f"--out={out}"])
    rectified.main()
    rows = record.load(out)
    assert len(rows) == 2 * len(rectified.ESTIMATORS)
    for row in rows:
        assert 0.2 < row["result"]["zeros"] < 0.8
        assert row["result"]["with_atoms"] != row["result"]["without"]


def test_histogram_of_a_shared_mask():
    """log 2 for the mask, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20_000, 1, generator=generator) < 0.5
    x = mask * (1 + torch.rand(20_000, 3, generator=generator))
    mi = rectified.histogram_information(x)
    assert float(mi[0, 1]) == pytest.approx(math.log(2), abs=0.005)
    assert float(mi[0, 2]) == pytest.approx(math.log(2), abs=0.005)
    untied = rectified.untied(x)
    assert all(len(column.unique()) == 20_000 for column in untied.T)
    assert (x[untied[:, 0].argsort(), 0].diff() >= 0).all()
