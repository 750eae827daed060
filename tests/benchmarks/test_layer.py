"""The benchmark itself, on tiny shapes."""

import json

from benchmarks import layer, record


def test_speed_row_has_times_ratio_and_error():
    result = layer.speed(64, 256, 4, repeats=2, seed=0)
    assert 0 < result["seconds"]["min"] <= result["seconds"]["median"] <= result["seconds"]["max"]
    assert result["ratio"]["median"] > 0
    assert result["max_error_nats"] < 2e-3


def test_memory_is_measured_in_a_process_of_its_own():
    result = layer.memory(64, 256, 4, 2**28)
    assert result["budget_mb"] == 2**28 / 1e6
    assert result["workspace_mb"] < 300


def test_rows_are_appended_with_their_conditions(tmp_path):
    path = tmp_path / "results" / "rows.jsonl"
    for n in (1, 2):
        record.append([record.row("name", "command", {"N": n}, {"seconds": 1.0})], path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["case"]["N"] for r in rows] == [1, 2]
    assert {"commit", "machine", "versions", "command", "date"} <= rows[0].keys()
