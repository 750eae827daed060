"""The committed pages and plots show the stored rows."""

import json
import math
import re

import numpy as np
import pytest

from benchmarks.gpu import cost
from benchmarks.publish import __main__ as publish
from benchmarks.publish import accuracy, page, plots, quality, reliability, stages, throughput_rows
from benchmarks.quality.scores import Score, sheets
from benchmarks.record import RESULTS, append, command, load, on_device, row
from benchmarks.tables import duration, table


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with everything that is generated from the committed rows."""
    out = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["publish", f"--out={out}"])
        publish.main()
    return out


def generated(folder):
    return {path.name for path in folder.iterdir() if path.suffix in (".md", ".png", ".svg")} - {"README.md"}


def test_everything_generated_is_committed_and_nothing_else(published):
    assert generated(published) == generated(RESULTS)


@pytest.mark.parametrize(
    "name",
    ["accuracy", "glue", "gpu", "quality", "reliability", "sizes", "stages", "texts", "throughput-cpu"],
)
def test_committed_page_is_the_one_of_the_stored_rows(published, name):
    written = (published / f"{name}.md").read_text(encoding="utf-8")
    assert written == (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", written):
        assert (RESULTS / link).exists(), link


def test_equal_rows_give_equal_plots(published, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["publish", "stages", f"--out={tmp_path}"])
    publish.main()
    assert generated(tmp_path) == {"stages.md", "stages.png", "stages.svg"}
    for name in generated(tmp_path):
        assert (tmp_path / name).read_bytes() == (published / name).read_bytes()


def test_unknown_page_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["publish", "quantity"])
    with pytest.raises(SystemExit):
        publish.main()
    assert "PAGE: expected some of accuracy, glue" in capsys.readouterr().err


def test_rows_of_a_cpu_and_of_a_gpu_stand_beside_each_other(tmp_path):
    case = {"seed": 0}
    on_cpu = row("b", "c", case, {"value": 1})
    on_gpu = on_cpu | {"machine": on_cpu["machine"] | {"gpu": "G"}, "result": {"value": 2}}
    path = tmp_path / "rows.jsonl"
    append([on_cpu, on_gpu], path)
    assert [r["result"]["value"] for r in page.latest(path)] == [1, 2]
    assert [on_device(r, "cpu") for r in load(path)] == [True, False]
    assert [on_device(r, "cuda") for r in load(path)] == [False, True]


def test_latest_row_of_a_case_counts(tmp_path):
    path = tmp_path / "results" / "rows.jsonl"
    for seconds, n in ((1.0, 1), (2.0, 2), (3.0, 1)):
        append([row("name", "command", {"N": n, "seed": 0}, {"seconds": seconds})], path)
    rows = page.latest(path)
    assert [(r["case"]["N"], r["result"]["seconds"]) for r in rows] == [(1, 3.0), (2, 2.0)]
    assert load(tmp_path / "absent.jsonl") == []


def test_conditions_name_every_machine_commit_and_seed():
    rows = [row("name", "command", {"seed": seed}, {}) | {"commit": c} for seed, c in ((1, "a"), (0, "b"))]
    rows[0] |= {"machine": {"cpu": "Zen", "threads": 1}}
    rows[-1] |= {"machine": {"cpu": "Zen", "threads": 2}, "date": "2026-01-02"}
    text = page.conditions(rows)
    assert text.startswith("1 thread of Zen or 2 threads of Zen, torch ")
    assert text.endswith("commits a, b, 2026-01-02, seeds 0, 1.")
    rows[-1]["machine"]["gpu"] = "H100"
    assert page.conditions(rows[-1:]).startswith("H100, ")


def test_commands_can_be_pasted_into_a_shell():
    text = command("benchmarks.x", "a b", windows=3, methods=["flap, none", "random"], full=True, out=None)
    assert text == "python -m benchmarks.x 'a b' --windows 3 --methods 'flap, none' random --full"


def test_tables_escape_bars_and_keep_numbers_as_written():
    lines = table(["", "a"], [["|x|", "1.50"]]).splitlines()
    assert [cell.strip() for cell in lines[-1].split(" | ")] == ["| \\|x\\|", "1.50 |"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0604, "60 ms"), (0.0038, "3.8 ms"), (1.64, "1.6 s"), (90, "1.5 min"), (7200, "2.0 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_exponent_of_a_power_law():
    rows = [{"case": {"N": n}, "result": {"seconds": {"median": 3e-9 * n**2}}} for n in (256, 512, 1024)]
    assert throughput_rows.exponent(rows, "N") == pytest.approx(2)
    assert throughput_rows.exponent(rows[:2], "N") is None


def test_stages_of_the_last_demo_stand_beside_the_predicted_ones():
    demo = {"case": {"model": "Tiny.gguf"}, "result": {"seconds_of_stages": {"capture": 20.0, "new": 5.0}}}
    lines = stages.stage_table(demo, [], {"Large": {"capture": 60.0, "save": 1.0}}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["", "Tiny, **measured**", "Large, *predicted*"]
    assert cells[2:] == [
        ["capture", "20 s", "1.0 min"],
        ["new", "5.0 s", ""],
        ["save", "", "1.0 s"],
        ["sum", "25 s", "1.0 min"],
    ]


def test_no_page_of_stages_without_a_demo(tmp_path):
    (tmp_path / "cpu.jsonl").write_text(json.dumps({"benchmark": "other"}) + "\n")
    stages.publish(tmp_path / "cpu.jsonl", tmp_path)
    assert not list(tmp_path.glob("stages.*"))


def test_predicted_stages_grow_with_the_model_and_contain_the_floor_of_mi():
    small, medium, large = (cost.stages(model, "H100") for model in cost.MODELS.values())
    assert all(small[stage] < medium[stage] < large[stage] for stage in small)
    assert small["measure"] > 32 * cost.floor("grid", 11008, 4096, "int8", "H100")[0]
    assert small["save"] == pytest.approx(2 * (6.74e9 - 32 * 3 * 4096 * 2202) / cost.DISK)


def test_rmse_is_averaged_over_cases_with_an_interval_around_it():
    values = np.array([[3.0, -4.0], [0.0, 0.0]])
    assert accuracy.mean_rmse(values) == pytest.approx(math.sqrt(12.5) / 2)
    low, high = accuracy.interval(values)  # resampled draws are all 3 or all 4 at the extremes
    assert (low, high) == (1.5, 2.0)


def test_reached_tokens_are_interpolated_or_bounded():
    rows = [
        {
            "case": {"layer": layer, "M": m},
            "result": {"halves": r, "seconds_of_a_half": 1.0, "tokens_for_target": 9.0},
        }
        for layer, agreement in ((0, (0.8, 1.0)), (1, (0.95, 0.97)), (2, (0.1, 0.5)))
        for m, r in zip((200, 800), agreement, strict=True)
    ]
    curve = reliability.Curve(rows)
    assert curve.tokens == [100, 400]
    assert [curve.reached(i) for i in range(3)] == ["200", "< 100", "> 400"]


def test_changes_are_percentages_with_errors_or_factors():
    dense = Score("perplexity", 10.0, np.log([10.0, 10.0]))
    assert quality.change(Score("perplexity", 11.0, np.log([11.0, 11.0])), dense) == "+10.0 % ± 0.0 %"
    assert quality.change(Score("perplexity", 50.0, np.log([50.0, 50.0])), dense) == "x 5"
    correlated = [Score("spearman", v, np.array([v, v])) for v in (0.8, 0.9)]
    assert quality.change(*correlated) == "-0.100 ± 0.000"


def test_spread_over_criteria_is_that_of_the_stored_perplexities():
    sheet = next(s for s in sheets(RESULTS / "quality.jsonl") if s.protocol == "8x512")
    criteria = ("random", "magnitude", "random-pairs", "pairwise-mi", "wanda", "flap", "conditional-mi")
    values = [sheet.scores[f"{c}, lstsq", 0.2].value for c in criteria]
    line = next(x for x in quality.spread_table([sheet]).splitlines() if "least squares" in x)
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    assert cells == [
        "least squares",
        "7",
        f"{np.std(np.log(values), ddof=1):.3f}",
        f"{max(values) / min(values):.3g}",
    ]


def test_texts_on_the_right_do_not_overlap():
    figure, axes = plots.plt.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plots.write_right(axes, list("abc"), [0.5, 0.5, 0.99], ["black"] * 3)
    heights = sorted(note.get_position()[1] for note in axes.texts)
    assert np.diff(heights).min() > 0.049
    assert 0 <= heights[0] <= heights[-1] <= 1
    plots.plt.close(figure)
