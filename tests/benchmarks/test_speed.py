"""The benchmarks of speed, on tiny shapes."""

import json
import math
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.publish import throughput as page
from benchmarks.record import load
from benchmarks.speed import __main__ as recorder
from benchmarks.speed import counts, layer, measure, plans, processes
from benchmarks.speed import elimination as eliminating
from benchmarks.speed.cases import Case, Series, all_series, powers
from benchmarks.speed.errors import errors, references
from benchmarks.speed.measure import Effort, rerun_command, series_rows, take_turns
from benchmarks.speed.samples import samples, scores, true_mi
from benchmarks.speed.variants import VARIANTS
from pruning import Settings

from tiny import tiny_model, tiny_tokenizer

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


def test_command_of_a_row_measures_the_same_rows_again(recorded):
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
        assert result["seconds"]["min"] > 0
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


@pytest.mark.parametrize("name", [name for name, v in VARIANTS.items() if v.package in (None, "scipy")])
def test_variants_find_the_dependent_pair_and_agree_on_nats(name):
    """Those of other packages: `tests/rivals/test_peers.py`."""
    variant = VARIANTS[name]
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


def test_variants_that_cannot_run_are_reported_and_left_out(monkeypatch, no_memory, capsys):
    monkeypatch.setitem(VARIANTS, "absent", replace(VARIANTS["widestats"], module="no_such_module"))
    cases = (CASE, replace(CASE, N=24))
    rows = series_rows(Series("tiny", cases, ("ours", "absent")), replace(EFFORT, cap=0.0))
    assert [(r["case"]["variant"], r["case"]["N"]) for r in rows] == [("ours", 12)]
    output = capsys.readouterr().out
    assert "absent on grid-G4-int8-N12-M64-cpu: widestats is not installed" in output
    assert "ours on grid-G4-int8-N24-M64-cpu: would take about" in output


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


def test_truth_of_rectified_samples_is_that_of_large_tables():
    case = Case(N=5, M=200_000, zeros=0.5)
    x = samples(case)
    assert (x == 0).float().mean(0) == pytest.approx([0.5] * 5, abs=0.01)
    z = scores(x, case.seed)
    assert z[x == 0].unique().numel() <= 5  # one value a column: zeros are not told apart
    truth = true_mi(case, 5)
    for i, j in ((0, 1), (1, 2), (3, 4)):
        edges = [
            torch.cat([torch.zeros(1), x[x[:, k] > 0, k].quantile(torch.linspace(0, 1, 40)[1:-1])])
            for k in (i, j)
        ]
        a, b = (torch.bucketize(x[:, k].contiguous(), edge) for k, edge in zip((i, j), edges, strict=True))
        joint = torch.bincount(40 * a + b, minlength=1600).view(40, 40).double() / case.M
        independent = joint.sum(1, keepdim=True) * joint.sum(0)
        table = float(torch.special.xlogy(joint, joint / independent.clamp(min=1e-300)).sum())
        assert float(truth[i, j]) == pytest.approx(table, abs=0.03)


def twice_the_correlation(z):
    """An estimator of a user: wrong, and as an array."""
    return 2 * torch.corrcoef(z.t()).abs().numpy()


def test_an_estimator_of_the_user_joins_the_table(monkeypatch, no_memory, tmp_path):
    name = "own_estimators:twice_the_correlation"
    monkeypatch.setitem(
        sys.modules, "own_estimators", SimpleNamespace(twice_the_correlation=twice_the_correlation)
    )
    out = tmp_path / "throughput-cpu.jsonl"
    arguments = [
        f"--variant={name}",
        "--sizes=6x64,12x64",
        "--series=kde over N",
        "--turns=1",
        f"--out={out}",
    ]
    monkeypatch.setattr("sys.argv", ["benchmarks.speed", *arguments])
    recorder.main()
    rows = load(out)
    assert [(r["case"]["variant"], r["case"]["N"], r["case"]["M"]) for r in rows] == [
        ("ours", 6, 64),
        (name, 6, 64),
        ("ours", 12, 64),
        (name, 12, 64),
    ]
    own = rows[-1]
    truth = true_mi(Case(12, 64), 12)
    z = scores(samples(Case(12, 64)), 0)
    first, second = torch.triu_indices(12, 12, 1)
    error = (
        (torch.from_numpy(twice_the_correlation(z)).double() - truth)[first, second].square().mean().sqrt()
    )
    assert own["result"]["rms_to_truth_nats"] == pytest.approx(float(error))
    assert name in page.comparison(rows[2:])[0]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--variant=nobody", "variant: expected one of ours, .* or package.module:function, got 'nobody'"),
        ("--variant=no.such_module:function", "no.such_module:function: No module named 'no'"),
        ("--variant=math:no_such_function", "math:no_such_function: module 'math' has no attribute"),
        ("--series=nothing", "argument --series: expected the name of a series, got 'nothing'"),
        ("--sizes=12", "argument --sizes"),
    ],
)
def test_bad_arguments_are_named_before_measuring(argument, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks.speed", argument])
    with pytest.raises(SystemExit):
        recorder.main()
    assert re.search(message, capsys.readouterr().err)


def test_errors_of_the_reference_itself():
    case = Case(N=6, M=64, estimator="kde", precision="fp64")
    exact = references(samples(case), case, {"kde"})
    found = errors(exact["kde"], case, exact)
    assert found["max_error_nats"] == 0
    assert found["spearman_to_kde"] == pytest.approx(1)
    assert found["pairs_compared"] == 15
    assert errors(-exact["kde"], case, exact)["spearman_to_kde"] == pytest.approx(-1)


def test_series_grow_and_start_with_ours():
    assert powers(256, 1024) == [256, 512, 1024]
    for series in all_series("cpu", seed=0):
        assert VARIANTS[series.variants[0]].ours
        sizes = [(case.N, case.M) for case in series.cases]
        assert sizes == sorted(sizes)


def test_page_has_the_time_and_error_of_every_variant(recorded, tmp_path):
    _, rows = recorded
    text, note = page.comparison(rows)
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
    }
    peer = lines["torch, broadcasting"]
    assert peer[0] == "KDE at the samples"
    assert peer[3] == f"{rows[1]['result']['rms_to_truth_nats']:.3f}"
    assert lines["mikernels grid int8"][2] == "1.0"
    assert note == "N = 12, M = 64, 66 pairs."


def test_turns_are_interleaved_after_a_warm_up():
    log = []
    values, seconds, _ = take_turns(
        {name: lambda name=name: log.append(name) or name for name in "ab"}, Effort(2, 1e9)
    )
    assert log == list("ababab")
    assert values == {"a": "a", "b": "b"}
    assert {name: len(s) for name, s in seconds.items()} == {"a": 2, "b": 2}


def test_layer_has_the_error_against_the_reference():
    result = layer.speed(64, 256, 4, repeats=2, seed=0)
    assert 0 < result["max_error_nats"] < 2e-3
    assert result["ratio"].keys() == result["seconds"].keys() == {"min", "median", "max"}


def test_memory_beyond_input_and_result_stays_below_the_budget():
    result = layer.memory(128, 1024, 16, 2**25)
    assert result["budget_mb"] == pytest.approx(33.55, abs=0.01)
    assert 1 < result["workspace_mb"] < result["budget_mb"]


def test_all_methods_count_the_same():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(4, (3, 50), generator=generator)
    first, second = torch.triu_indices(3, 3, 1)
    found = {name: list(count(x, first, second, 4)) for name, count in counts.METHODS.items()}
    tile = found.pop("one-hot product")[0].view(4, 3, 4, 3)
    expected = torch.stack([tile[:, i, :, j] for i, j in zip(first, second, strict=True)]).double()
    for tensors in found.values():
        assert torch.equal(torch.cat([t.double().view(-1, 4, 4) for t in tensors]), expected)


def test_times_of_some_pairs_are_scaled_to_all_pairs(monkeypatch):
    def turns(calls, effort):
        for call in calls.values():
            call()
        return {}, {name: [1.0] for name in calls}, {}

    monkeypatch.setattr(counts, "take_turns", turns)
    found = counts.measure(4, 50, 8, turns=1, n_timed=2, seed=0)
    assert found.pop("pairs_timed_pair_by_pair") == 2
    assert {name: times["median"] for name, times in found.items()} == {
        name: 3.0 if name in counts.PAIR_BY_PAIR else 1.0 for name in counts.METHODS
    }


def test_elimination_gives_one_order_in_every_form_and_keeps_the_form_of_the_package(tmp_path, monkeypatch):
    out, used = tmp_path / "rows.jsonl", eliminating.elimination._Projection
    sizes = ["--neurons=96", "--outputs=8", "--ratios", "0.5", "1.0"]
    monkeypatch.setattr("sys.argv", ["elimination", *sizes, f"--out={out}"])
    monkeypatch.setattr(torch, "set_num_threads", lambda _n: None)
    eliminating.main()
    result = load(out)[0]["result"]
    assert set(result) == {"projection, 0.5", "projection, 1", "gram, 0.5", "gram, 1"}
    assert all(found["differing_positions"] == 0 for found in result.values())
    assert eliminating.elimination._Projection is used


def test_processes_are_compared_on_the_first_layers(tmp_path, monkeypatch):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    ran = []

    def run(command, *, env, **_options):
        """In this process, with other weights and half of the time for several."""
        ran.append((env["OMP_NUM_THREADS"], "--nproc-per-node=2" in command))
        folder, _, out, settings = command[command.index("benchmarks.speed.processes") + 1 :]
        several = {"criterion": "random"} if ran[-1][1] else {}
        processes.work(Path(folder), Path(out), Settings(**json.loads(settings), **several))
        for rank in range(2):
            seconds = 1.0 if several else 2.0
            times = {"seconds": seconds, "processor": seconds - rank / 2}
            Path(f"{out}.{rank}.json").write_text(json.dumps(times))

    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "rows.jsonl"
    sizes = ["--layers=2", "--tokens=256", "--length=32", "--multiple=4", "--turns=2", f"--out={out}"]
    monkeypatch.setattr("sys.argv", ["processes", str(tmp_path / "model"), *sizes])
    processes.main()
    (row,) = load(out)
    assert ran == [("1", False), ("2", False), ("1", True)] * 2
    result = row["result"]
    assert row["case"]["layers"] == result["layers"] == 2
    assert result["layers_with_equal_selections"] == 0
    assert result["largest_difference"] > 0.1
    assert result["speed_relative_to_threads"]["median"] == 2
    assert result["speed_relative_to_threads_that_never_wait"]["median"] == 1


def test_a_run_has_the_stages_that_its_plan_predicts(tmp_path, monkeypatch):
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setitem(plans.SIZES, "tiny", sizes | {"num_key_value_heads": 4, "vocab_size": 64})
    monkeypatch.setattr(plans, "LENGTH", 16)
    monkeypatch.setattr(
        "sys.argv",
        ["", "--size=tiny", "--ratio=0.5", "--tokens=512", "--run", f"--out={tmp_path / 'rows.jsonl'}"],
    )
    plans.main()
    (found,) = load(tmp_path / "rows.jsonl")
    predicted, measured = found["result"]["stages"], found["result"]["measured_seconds"]
    assert {name for name, stage in predicted.items() if stage["operations"]} <= measured.keys()
