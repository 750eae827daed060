"""The comparison with llama.cpp: what it converts, what it reports, and that it fails where the outputs differ."""

import json
import shutil

import pytest
import torch

from benchmarks.consumers import gguf
from benchmarks.record import load
from pruning import prune
from pruning.report.save import save_pruned

from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(params=["uniform", "mi"])
def budget(request):
    return request.param


@pytest.fixture
def converted(tmp_path, monkeypatch, budget):
    """A pruned model, and whether the stand-in for the converter was asked for layers of different widths."""

    model, asked = tiny_model("Llama"), []
    windows = torch.randint(3, 200, (16, 16), generator=torch.Generator().manual_seed(0))
    report = prune(model, None, calibration=windows, ratio=0.5, multiple_of=1, budget=budget, sample_size=64)
    save_pruned(model, tiny_tokenizer(), report, tmp_path / "pruned")

    def convert(folder, file, outtype, *, uneven):
        assert folder == tmp_path / "pruned"
        file.write_bytes(outtype.encode())
        asked.append(uneven)

    monkeypatch.setattr(gguf, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr(gguf, "convert", convert)
    return tmp_path / "pruned", asked


@pytest.mark.parametrize(("outtype", "status"), [("f32", 1), ("q8_0", 0)])
def test_another_continuation_is_an_error_where_nothing_is_rounded(
    converted, budget, monkeypatch, capsys, outtype, status
):
    folder, asked = converted
    rows = folder.parent / "rows.jsonl"
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/node")
    monkeypatch.setattr(gguf, "llama_cpp_continues", lambda _file: "something else")
    assert gguf.main([str(folder), f"--outtype={outtype}", f"--out={rows}"]) == status
    assert json.loads(capsys.readouterr().out)["equal"] is False
    expected, uneven = gguf.transformers_continues(folder)
    monkeypatch.setattr(gguf, "llama_cpp_continues", lambda _file: expected)
    assert gguf.main([str(folder), f"--outtype={outtype}", f"--out={rows}"]) == 0
    assert asked == [uneven, uneven]
    assert uneven is (budget == "mi")
    recorded = [row["result"]["equal"] for row in load(rows)]
    assert recorded == [False, True]


def test_without_node_only_the_conversion_is_tried(converted, monkeypatch, capsys):
    folder, asked = converted
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert gguf.main([str(folder), f"--out={folder.parent / 'rows.jsonl'}"]) == 0
    printed = capsys.readouterr()
    assert "not run in llama.cpp" in printed.err
    assert "llama.cpp" not in json.loads(printed.out)
    assert len(asked) == 1
