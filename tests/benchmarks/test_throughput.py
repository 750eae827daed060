"""The throughput benchmark itself, on tiny shapes."""

import copy
import json
import math
import shlex
from dataclasses import replace

import pytest
import torch

from benchmarks.readme import between_markers, markers
from benchmarks.throughput import __main__ as recorder
from benchmarks.throughput import measure
from benchmarks.throughput.accuracy import accuracy, references, spearman
from benchmarks.throughput.cases import Case, Series, all_series, powers
from benchmarks.throughput.measure import Effort, rerun_command, series_rows
from benchmarks.throughput.rows import exponent, load
from benchmarks.throughput.samples import samples, scores, true_mi
from benchmarks.throughput.variants import VARIANTS

CASE = Case(N=12, M=64, nodes=4)
EFFORT = Effort(turns=2, seconds=1.0, cap=1.0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The command of a row, and the rows that it stores."""
    out = tmp_path_factory.mktemp("results") / "throughput-cpu.jsonl"
    command = rerun_command("tiny", CASE, ["ours", "torch-broadcast"], EFFORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*shlex.split(command)[2:], f"--out={out}"])
        recorder.main()
    return command, load(out)


def test_a_rows_command_measures_the_same_rows_again(recorded):
    command, rows = recorded
    assert [r["command"] for r in rows] == [command, command]
    assert [r["case"]["variant"] for r in rows] == ["ours", "torch-broadcast"]
    assert rows[0]["case"] == {
        "series": "tiny",
        "variant": "ours",
        **vars(CASE),
    }
    assert rows[1]["case"]["estimator"] == "kde"


def test_every_time_has_its_error_and_memory_beside_it(recorded):
    _, (ours, peer) = recorded
    for row in (ours, peer):
        result = row["result"]
        assert 0 < result["seconds"]["min"] <= result["seconds"]["median"] <= result["seconds"]["max"]
        assert result["turns"] == 2
        assert result["peak_memory_mb"] >= 0
        assert result["pairs_timed"] == 66
        assert not result["extrapolated"]
    assert ours["result"]["max_error_nats"] < 0.01
    assert peer["result"]["max_error_nats"] < 1e-5
    assert peer["result"]["spearman_to_kde"] > 0.999
    assert peer["result"]["times_slower_than_ours"] > 0
    assert ours["result"]["share_of_matmul_rate"] > 0


@pytest.fixture
def no_memory(monkeypatch):
    """Without the processes that measure memory, which take seconds to start."""
    monkeypatch.setattr(measure, "peak_bytes", lambda case, variant: 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_find_the_dependent_pair_and_agree_on_nats(name):
    variant = VARIANTS[name]
    if reason := variant.missing():
        pytest.skip(reason)
    case = Case(N=3, M=500, precision="fp32", nodes=10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.M, 3, generator=generator)
    x[:, 2] = 0.6 * x[:, 0] + 0.8 * x[:, 2]  # 0.22 nats
    mi = variant.call(x, case)()
    assert mi.shape == (3, 3)
    assert float(mi[0, 2]) == pytest.approx(-0.5 * math.log(1 - 0.36), abs=0.1)
    assert max(float(mi[0, 1]), float(mi[1, 2])) < 0.1


def test_pairs_of_some_columns_stand_for_all_where_a_peer_is_slow(monkeypatch, no_memory):
    slow = replace(VARIANTS["torch-broadcast"], name="slow", columns=4)
    monkeypatch.setitem(VARIANTS, "slow", slow)
    ours, row = series_rows(Series("tiny", (CASE,), ("ours", "slow")), EFFORT)
    assert row["result"]["extrapolated"]
    assert row["result"]["pairs_timed"] == 6
    assert row["result"]["pairs_compared"] == ours["result"]["pairs_compared"] == 6


def test_what_cannot_run_is_said_and_left_out(monkeypatch, no_memory, capsys):
    monkeypatch.setitem(VARIANTS, "absent", replace(VARIANTS["widestats"], module="no_such_module"))
    cases = (CASE, replace(CASE, N=24))
    rows = series_rows(Series("tiny", cases, ("ours", "absent")), replace(EFFORT, cap=0.0))
    assert [(r["case"]["variant"], r["case"]["N"]) for r in rows] == [("ours", 12)]
    said = capsys.readouterr().out
    assert "absent on grid-G4-int8-N12-M64-cpu: widestats is not installed" in said
    assert "ours on grid-G4-int8-N24-M64-cpu: would take about" in said


def test_a_variant_that_would_fill_the_memory_is_left_out(capsys):
    huge = Case(N=10**4, M=10**4)
    assert series_rows(Series("huge", (huge,), ("torch-broadcast",)), EFFORT) == []
    assert "needs about 40000000 GB of memory" in capsys.readouterr().out


def test_truth_is_that_of_the_samples():
    case = Case(N=6, M=20_000)
    x = samples(case)
    assert float((x / x.std(0)).pow(4).mean()) > 5  # heavy tails
    z = scores(x, case.seed).double()
    estimated = -0.5 * torch.log1p(-torch.corrcoef(z.T).fill_diagonal_(0).square())
    truth = true_mi(case, 6).fill_diagonal_(0)
    torch.testing.assert_close(estimated, truth, atol=0.02, rtol=0.05)


def test_accuracy_of_the_reference_itself():
    case = Case(N=6, M=64, estimator="kde", precision="fp64")
    exact = references(samples(case), case, {"kde"})
    found = accuracy(exact["kde"], case, exact)
    assert found["max_error_nats"] == 0
    assert found["spearman_to_kde"] == pytest.approx(1)
    assert found["pairs_compared"] == 15
    assert spearman(torch.arange(5.0), -torch.arange(5.0)) == pytest.approx(-1)


def test_series_grow_and_start_with_ours():
    assert powers(256, 1024) == [256, 512, 1024]
    for series in all_series("cpu", seed=0):
        assert VARIANTS[series.variants[0]].ours
        sizes = [(case.N, case.M) for case in series.cases]
        assert sizes == sorted(sizes)


def test_exponent_of_a_power_law():
    rows = [{"case": {"N": n}, "result": {"seconds": {"median": 3e-9 * n**2}}} for n in (256, 512, 1024)]
    assert exponent(rows, "N") == pytest.approx(2)
    assert math.isnan(exponent(rows[:2], "N"))


def test_plots_and_tables_are_made_from_rows_alone(recorded, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    rows = [
        with_size(row, series.name, case)
        for series in all_series("cpu", seed=0)
        for case in series.cases[:3]
        for row in recorded[1]
    ]
    (tmp_path / "throughput-cpu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    readme = tmp_path / "README.md"
    begin, end = markers("throughput")
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    folder = tmp_path / "plots"
    monkeypatch.setattr("sys.argv", ["", f"--results={tmp_path}", f"--plots={folder}", f"--readme={readme}"])
    plot.main()
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = {
        f"throughput-cpu-{what}.{end}" for what in ("error", "scaling", "roofline") for end in ("png", "svg")
    }
    assert made.keys() == names | {"throughput-cpu.md"}
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n![")
    assert text.endswith(f"\n{end}\nafter\n")
    assert "old" not in text
    assert "| torch, broadcasting | KDE at the samples |" in text
    plot.main()
    assert made == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="expected the markers <!-- name:begin -->"):
        between_markers("no markers", "name", "block")


def with_size(row, series, case):
    """A row as if it were of another series and size."""
    row = copy.deepcopy(row)
    row["case"] |= {"series": series, "N": case.N, "M": case.M}
    return row
