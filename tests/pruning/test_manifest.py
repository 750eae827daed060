"""The manifest is JSON, whatever a report holds."""

import json
from pathlib import Path

import numpy
import torch

from pruning import progress
from pruning.report.manifest import Report


def test_values_of_any_library_become_json():
    notes = {
        "number": numpy.float32(0.25),
        "count": numpy.int64(4),
        "flag": numpy.bool_(True),
        "array": numpy.array([[1.0, float("nan")], [float("inf"), 2.0]]),
        "tensor": torch.tensor([1, 2]),
        "half": torch.tensor(0.5, dtype=torch.bfloat16),
        "path": Path("a") / "b",
        "dtype": torch.bfloat16,
        "nan": float("nan"),
        "tuple": (1, None),
        "set": {"one"},
        7: {numpy.int64(8): "keys"},
    }
    report = Report({"ratio": 0.5}, 10, [], {"measure": 1.23456}, {0: float("-inf")}, notes, ["config.json"])
    text = report.manifest()
    assert not {"NaN", "Infinity"} & set(text.replace(",", " ").split())
    manifest = json.loads(text)
    assert {name: manifest[name] for name in map(str, notes)} == {
        "number": 0.25,
        "count": 4,
        "flag": True,
        "array": [[1.0, None], [None, 2.0]],
        "tensor": [1, 2],
        "half": 0.5,
        "path": str(Path("a") / "b"),
        "dtype": "torch.bfloat16",
        "nan": None,
        "tuple": [1, None],
        "set": ["one"],
        "7": {"8": "keys"},
    }
    assert manifest["candidates"] == {"0": None}
    assert manifest["seconds"] == {"measure": 1.235}
    assert manifest["files"] == ["config.json"]


def test_memory_is_that_of_the_stages_in_which_it_rose(monkeypatch):
    peaks = iter([500, 500, 900, 900])
    monkeypatch.setattr(progress, "_peak_bytes", lambda: next(peaks))
    seconds = progress.Stages()
    for stage in ("capture", "measure", "repair", "capture"):
        with progress.timed(seconds, stage):
            pass
    assert set(seconds) == {"capture", "measure", "repair"}
    assert json.loads(Report({}, 10, [], seconds).manifest())["peak_bytes"] == {"capture": 500, "repair": 900}
