"""Each measurement of `benchmarks.speed.embedding` on a tiny table."""

import sys

import pytest

from benchmarks.record import load
from benchmarks.speed import embedding


def run(tmp_path, monkeypatch, *arguments):
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["embedding", *arguments, "--variables=8", f"--out={rows}"])
    embedding.main()
    return load(rows)


def test_kinds_of_arrays_take_turns_with_a_tensor(tmp_path, monkeypatch):
    rows = run(tmp_path, monkeypatch, "kinds", "--samples=64", "--repeats=2")
    assert {"numpy", "pandas", "pyarrow"} <= {row["case"]["kind"] for row in rows}
    for row in rows:
        assert row["result"]["ratio"]["median"] > 0
        assert row["result"]["kind_s"]["median"] > row["result"]["conversions_s"]["min"]


def test_the_command_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (row,) = run(tmp_path, monkeypatch, "command", "--samples=64", "--draws=1000", "--top=5")
    assert row["result"]["edges"] == 5
    assert row["result"]["peak_mb"] == pytest.approx(
        row["result"]["imports_mb"] + row["result"]["workspace_mb"], abs=1
    )
    assert row["command"].endswith("--variables 8 --seed 0 --draws=1000 --top=5")


def test_imports_take_turns_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    exec(embedding.IMPORT.format(modules="json, sys"), {})  # noqa: S102
    assert 0 <= float(capsys.readouterr().out) < 1
    monkeypatch.setattr(embedding, "IMPORT", "print(len('{modules}'))")  # torch takes seconds
    (row,) = run(tmp_path, monkeypatch, "import", "--repeats=3")
    medians = {name: values["median"] for name, values in row["result"].items()}
    assert medians == {"torch_s": 5, "both_s": 16, "beyond_torch_s": 11}
    assert row["command"] == "python -m benchmarks.speed.embedding import --repeats 3"
