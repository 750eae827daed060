"""The stages of pruning a model: what was measured and what is predicted stay apart."""

import json

import pytest

pytest.importorskip("triton")  # the cost model reads the tile sizes of its kernels
pytest.importorskip("matplotlib")

from benchmarks import cost, record, stages

MEASURED = {"capture": 20.0, "measure": 70.0, "a new stage": 5.0}


def test_page_and_plot_are_made_from_the_last_demo(tmp_path):
    case = {
        "model": "Tiny.gguf",
        "calibration_tokens": 64,
        "sample_size": 32,
        "estimator": "grid",
        "ratio": 0.2,
        "seed": 0,
    }
    rows = [
        record.row("demo", "command", case, {"seconds_of_stages": s})
        for s in ({"an earlier run": 1.0}, MEASURED)
    ]
    record.append([*rows, record.row("other", "command", {}, {})], tmp_path / "cpu.jsonl")
    stages.write(tmp_path / "cpu.jsonl", tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.glob("stages.*")}
    assert made.keys() == {"stages.md", "stages.png", "stages.svg"}
    page = made["stages.md"].decode()
    head = next(line for line in page.splitlines() if "measured" in line)
    assert head.count("**measured**") == 1
    assert head.count("*predicted*") == len(cost.MODELS)
    assert "| a new stage | 5.0 s |" + "  |" * len(cost.MODELS) in page
    assert "an earlier run" not in page
    stages.write(tmp_path / "cpu.jsonl", tmp_path)
    assert made == {path.name: path.read_bytes() for path in tmp_path.glob("stages.*")}


def test_without_a_demo_nothing_is_made(tmp_path):
    (tmp_path / "cpu.jsonl").write_text(json.dumps({"benchmark": "other"}) + "\n")
    stages.write(tmp_path / "cpu.jsonl", tmp_path)
    assert not list(tmp_path.glob("stages.*"))


def test_predicted_stages_grow_with_the_model_and_contain_the_floor_of_mi():
    small, medium, large = (cost.stages(model, "H100") for model in cost.MODELS.values())
    assert all(small[stage] < medium[stage] < large[stage] for stage in small)
    assert small["measure"] > 32 * cost.floor("grid", 11008, 4096, "int8", "H100")[0]
    assert small["save"] == pytest.approx(2 * (6.74e9 - 32 * 3 * 4096 * 2202) / cost.DISK)
