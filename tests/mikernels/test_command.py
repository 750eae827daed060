"""The command `mikernels`: every kind of file in and out, what it chooses, and one line for what is wrong."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from mikernels import mutual_information, null_distribution, top_pairs
from mikernels.arguments import parser
from mikernels.cli import main
from mikernels.files import matrix_file, select
from mikernels.options import OPTIONS
from mikernels.statistics.null import q_values

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")

NAMES = [f"gene {i}" for i in range(12)]
FEW = ["--draws=10000", "--quiet"]


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """`[300, 12]`: columns 0 and 1, and 2 and 3, share a factor; the others are independent."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(300, 12)).astype(np.float32)
    values[:, 1] += 2 * values[:, 0]
    values[:, 3] += values[:, 2]
    return values


@pytest.fixture(scope="module")
def table(values):
    return pandas.DataFrame(values, columns=NAMES)


@pytest.fixture
def data(table, tmp_path):
    path = tmp_path / "data.parquet"
    table.to_parquet(path)
    return str(path)


@pytest.fixture
def edges(capfd):
    """Runs the command and reads the table that it prints."""

    def run(*arguments):
        assert main([*FEW, *map(str, arguments)]) == 0, capfd.readouterr().err
        return pandas.read_csv(io.StringIO(capfd.readouterr().out))

    return run


@pytest.fixture
def refusal(capfd):
    """Runs the command and returns the one line of its error."""

    def run(*arguments):
        assert main([str(a) for a in arguments]) == 1
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err.strip()

    return run


def write_csv(table, path):
    table.to_csv(path, index=False)


def write_csv_with_row_names(table, path):
    table.set_axis([f"cell {i}" for i in range(len(table))]).to_csv(path)


def write_tsv(table, path):
    table.to_csv(path, index=False, sep="\t")


def write_h5ad(table, path):
    anndata, sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
    cells = anndata.AnnData(sparse.csr_matrix(table.to_numpy()))
    cells.var_names = list(table.columns)
    with anndata.settings.override(allow_write_nullable_strings=True):
        cells.write_h5ad(path)


def write_parquet_with_row_numbers(table, path):
    """As pandas does where rows were dropped, sorted or named."""
    table.set_axis(range(0, 2 * len(table), 2)[::-1]).rename_axis("cell").to_parquet(path, index=True)


def write_parquet_with_two_levels(table, path):
    levels = [[f"cell {i}" for i in range(len(table))], [*range(len(table))]]
    table.set_axis(pandas.MultiIndex.from_arrays(levels)).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", write_csv),
        ("a.csv.gz", write_csv),
        ("rows.csv", write_csv_with_row_names),
        ("a.TSV", write_tsv),
        ("a.parquet", lambda table, path: table.to_parquet(path)),
        ("rows.parquet", write_parquet_with_row_numbers),
        ("levels.parquet", write_parquet_with_two_levels),
        ("a.npy", lambda table, path: np.save(path, table.to_numpy())),
        ("a.h5ad", write_h5ad),
    ],
)
def test_every_kind_of_file_gives_the_pairs_of_the_library(table, values, name, write, edges, tmp_path):
    path = tmp_path / name
    write(table, str(path))
    found = edges(path, "--top", 5)
    expected = top_pairs(values, 5)
    assert list(found.columns) == ["first", "second", "mi", "p", "q"]
    names = list(range(12)) if name.endswith("npy") else NAMES
    assert list(found["first"]) == [names[i] for i in expected.first]
    assert list(found["second"]) == [names[i] for i in expected.second]
    assert np.allclose(found["mi"], expected.mi, atol=1e-6)


def test_p_values_are_those_of_independent_samples_and_q_values_those_of_benjamini_and_hochberg(
    data, values, edges
):
    found = edges(data, "--top", 66)
    null = null_distribution(300, draws=20_000, seed=1)  # the columns have no atoms
    p = null.p_value(top_pairs(values, 66).mi)
    assert np.allclose(np.log(found["p"][2:]), np.log(p[2:]), atol=0.5)
    assert (found["p"][:2] < 1e-6).all()
    stats = pytest.importorskip("scipy.stats")
    assert np.allclose(found["q"], stats.false_discovery_control(found["p"]))
    first = torch.from_numpy(found["p"].to_numpy()[:9].copy())
    assert (q_values(first, 66).numpy() >= found["q"][:9] - 1e-12).all()


def test_what_is_chosen(data, values, edges):
    mi = mutual_information(values)
    pairs = mi[np.triu_indices(12, 1)]
    assert len(edges(data)) == 66  # fewer than the default of 1,000
    assert len(edges(data, "--threshold", 0.03)) == (pairs > 0.03).sum()
    significant = edges(data, "--fdr", 0.01)
    assert list(significant["first"]) == ["gene 0", "gene 2"]
    assert (significant["q"] <= 0.01).all()
    beyond = edges(data, "--threshold", "null:0.95")
    assert 2 <= len(beyond) < 12
    assert (beyond["p"] <= 0.0502).all()
    assert len(edges(data, "--fdr", 0.95)) >= len(beyond)


def test_columns_that_many_samples_leave_at_zero_have_p_values_of_their_own_kind(tmp_path, edges):
    x = np.random.default_rng(1).normal(size=(400, 30)).clip(min=0.2)
    np.save(tmp_path / "x.npy", x)
    p = edges(tmp_path / "x.npy", "--top", 10**6)["p"]
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.03)  # all are independent


def test_series_have_a_null_that_keeps_their_autocorrelation(tmp_path, edges):
    x = np.random.default_rng(1).normal(size=(500, 20))
    for t in range(1, 500):
        x[t] += 0.95 * x[t - 1]
    np.save(tmp_path / "x.npy", x)
    shuffled = edges(tmp_path / "x.npy", "--top", 10**6)["p"]
    series = edges(tmp_path / "x.npy", "--top", 10**6, "--time-series", "--draws=1000")["p"]
    assert (shuffled < 0.05).mean() > 0.8
    assert (series < 0.05).mean() < 0.2


def test_y_is_another_file_or_columns_of_the_same(data, table, values, edges, tmp_path):
    table[["gene 1", "gene 3"]].rename(columns=str.upper).to_parquet(tmp_path / "y.parquet")
    crossed = edges(data, "--y", tmp_path / "y.parquet", "--top", 100)
    assert len(crossed) == 24
    assert list(crossed.iloc[0])[:2] == ["gene 1", "GENE 1"]
    within = edges(data, "--y", "gene 1,gene 3", "--top", 100)
    assert len(within) == 20
    assert list(within.iloc[0])[:2] == ["gene 0", "gene 1"]
    assert within["mi"][0] == pytest.approx(float(mutual_information(values[:, [0]], values[:, [1]])[0, 0]))


@pytest.mark.parametrize("write", ["to_csv", "to_parquet"])
def test_rows_of_two_files_that_are_named_in_another_order_are_not_paired(
    write, table, values, edges, refusal, tmp_path
):
    names = [f"cell {i}" for i in range(len(table))]
    named, target = table.set_axis(names), table[["gene 1"]].rename(columns=str.upper).set_axis(names)
    path, other = tmp_path / f"x.{write[3:]}", tmp_path / f"y.{write[3:]}"
    getattr(named, write)(path)
    getattr(target, write)(other)
    assert list(edges(path, "--y", other, "--top=1").iloc[0])[:2] == ["gene 1", "GENE 1"]
    getattr(target.iloc[::-1], write)(other)
    message = f"mikernels: {other}: expected the rows of {path}, got 'cell 299' in place of 'cell 0'; drop"
    assert refusal(path, "--y", other).startswith(message)
    getattr(target.set_axis([*names[1:], "cell 300"]), write)(other)  # a sample less at either end
    assert "got 'cell 1' in place of 'cell 0'" in refusal(path, "--y", other)
    getattr(target[:-1], write)(other)
    assert "got no row in place of 'cell 299'" in refusal(path, "--y", other)
    getattr(target.reset_index(drop=True), write)(other)  # other names say nothing
    assert list(edges(path, "--y", other, "--top=1").iloc[0])[:2] == ["gene 1", "GENE 1"]


def test_names_of_columns_may_be_numbers_behind_names_of_rows(values, edges, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "spectra.csv"
    pandas.DataFrame(values, columns=[500 + i / 2 for i in range(12)]).to_csv(path)
    assert {str(name) for name in edges(path, "--top=66")["first"]} >= {"500.0", "500.5"}


def test_large_integers_do_not_matter_in_columns_that_are_left_out(table, edges, tmp_path):
    path = tmp_path / "a.csv.gz"
    floats = table["gene 2"].abs() * 1e30
    table.assign(id=[10**20 + i for i in range(len(table))], large=floats).to_csv(path, index=False)
    assert len(edges(path, "--drop=id", "--top=1000")) == 78
    assert len(edges(path, "--drop=id", "--y=large", "--top=1000")) == 12


@pytest.mark.parametrize("first", [1, 0])
def test_the_first_line_is_names_or_values_as_the_user_says(first, edges, refusal, tmp_path, capfd):
    """Where it is 0, 1, ..., as pandas names columns, names are assumed, and the user is told."""
    path = tmp_path / "a.csv"
    values = np.random.default_rng(0).permutation(100).reshape(-1, 4)
    values[0] = np.arange(first, first + 4)
    np.savetxt(path, values, fmt="%d", delimiter=",")
    names = [str(i) for i in range(first, first + 4)]
    for option, x, found in (
        ("--header", values[1:], names),
        ("--no-header", values, ["f0", "f1", "f2", "f3"]),
    ):
        pairs = edges(path, option)
        assert set(map(str, [*pairs["first"], *pairs["second"]])) == set(found)
        assert np.allclose(pairs["mi"], top_pairs(x, 6).mi, atol=1e-6)
    doubt = "add --no-header if these are values, --header if they are names"
    if first:
        message = f"mikernels: {path}: expected a first line with the names of the columns, got 1, 2, 3, ...; {doubt}"
        assert refusal(path) == message
        return
    assert main([str(path), "--draws=2000"]) == 0
    told = f"mikernels: warning: {path}: the first line, 0, 1, 2, ..., is taken for the names of the columns; {doubt}"
    assert told in capfd.readouterr().err


def test_integers_in_a_text_without_names_are_checked_too(refusal, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("1\t18446744073709551617\n" * 9)
    assert "got 18446744073709551617 in column 'f1'" in refusal(path, "--no-header")


def test_the_matrix_goes_to_a_file(data, values, tmp_path, capfd):
    assert main([data, "--matrix", str(tmp_path / "mi.npy"), "--estimator=renyi2", "--quiet"]) == 0
    assert np.array_equal(np.load(tmp_path / "mi.npy"), mutual_information(values, estimator="renyi2"))
    assert main([data, "--matrix", str(tmp_path / "y.npy"), "--y=gene 1", "--quiet"]) == 0
    assert np.load(tmp_path / "y.npy").shape == (11, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.parquet", "mi.npy", "y.npy"]


def test_a_matrix_for_which_the_disk_has_no_space_is_an_error_at_once(data, refusal, tmp_path, monkeypatch):
    """A process that writes to mapped memory without space behind it gets SIGBUS and dies without a message."""
    matrix_file(tmp_path / "mi.npy", (1000, 1000))
    assert (tmp_path / "mi.npy").stat().st_blocks * 512 >= 4_000_000

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert "No space left on device" in refusal(data, "--matrix", tmp_path / "other.npy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.parquet", "mi.npy"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_edges_go_to_a_file_a_few_rows_at_a_time(data, ending, edges, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("mikernels.files.ROWS", 20)
    out = tmp_path / f"edges.{ending}"
    assert main([data, "--out", str(out), "--draws=2000"]) == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == f"mikernels: 66 of 66 pairs from 300 samples, in {out}\n"
    read = (
        pandas.read_parquet(out) if ending == "parquet" else pandas.read_csv(out, sep=None, engine="python")
    )
    assert np.allclose(read["mi"], edges(data)["mi"], atol=1e-6)
    assert list(read["first"]) == list(edges(data)["first"])
    assert main([data, "--out", str(out), "--threshold=99", "--quiet", "--draws=2000"]) == 0  # none


@pytest.mark.parametrize("arguments", [["--out", "link.csv", "--draws=2000"], ["--matrix", "link.npy"]])
def test_what_a_link_leads_to_is_written(arguments, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / arguments[1]).symlink_to(tmp_path / "disk" / arguments[1])
    assert main([data, *arguments, "--quiet"]) == 0
    assert (tmp_path / arguments[1]).is_symlink()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == [arguments[1]]


def test_a_command_that_is_told_to_end_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def terminated(*_args, **_options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("mikernels.cli.ops.matrix", terminated)
    child = os.fork()  # a fresh process would take seconds to import everything
    if child == 0:
        try:
            main([data, "--matrix", str(tmp_path / "mi.npy"), "--quiet", "--device=cpu"])
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert [p.name for p in tmp_path.iterdir()] == ["data.parquet"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_options_of_the_library_are_options_of_the_command(data, values, edges):
    assert {action.dest for action in parser()._actions} >= set(OPTIONS)
    told = re.sub(r"\s+", " ", parser().format_help())
    assert "G, points per variable of grid, 2 to 256" in told
    assert "bytes of workspace beyond inputs and result" in told
    found = edges(data, "--top=1", "--nodes=8", "--bandwidth=0.5", "--calibrate", "--memory-budget=0.5M")
    assert found["mi"][0] == pytest.approx(
        float(top_pairs(values, 1, nodes=8, bandwidth=0.5, calibrate=True).mi[0])
    )
    without = edges(data, "--top=1", "--transform=standardize")
    assert list(without.columns) == ["first", "second", "mi"]


def test_help_has_the_whole_documentation_of_an_option(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "at several times the cost of grid",
        "memory grows as N M^2: for small inputs",
        '"scott" equals',
    ):
        assert words in text


def test_text_columns_are_named_and_can_be_dropped(table, edges, refusal, tmp_path):
    path = tmp_path / "a.csv"
    table.assign(tissue="liver").to_csv(path, index=False)
    assert refusal(path).startswith(
        f"mikernels: {path}: expected columns of real numbers, got string in 'tissue', and 1 such of 13 columns; leave"
    )
    assert len(edges(path, "--drop", "tissue,gene 0")) == 55


def test_columns_of_either_table_can_be_dropped(table, edges, refusal, tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    table[NAMES[:3]].assign(tissue="liver").to_csv(first, index=False)
    table[NAMES[2:]].assign(tissue="liver", donor="A").to_csv(second, index=False)
    found = edges(first, "--y", second, "--drop", "tissue,donor,gene 2,gene 11")
    assert set(found["first"]) == set(NAMES[:2])
    assert set(found["second"]) == set(NAMES[3:11])
    message = "mikernels: --drop: expected names of columns, got 'absent', which is none"
    assert refusal(first, "--y", second, "--drop", "tissue,donor,absent") == message
    every = ",".join(["tissue", "donor", *NAMES])
    assert "expected" in refusal(first, "--y", second, "--drop", every)


@pytest.mark.parametrize("option", ["--drop", "--y"])
def test_a_name_that_several_columns_have_chooses_none_of_them(option, table, refusal, tmp_path):
    table.set_axis(["a", "b", "a", *NAMES[3:]], axis=1).to_csv(tmp_path / "a.csv", index=False)
    message = f"mikernels: {option}: expected names of one column each, got 'a', which several have"
    assert refusal(tmp_path / "a.csv", option, "a") == message


def test_a_name_that_is_given_twice_is_refused(table, values, refusal, tmp_path):
    table[NAMES[:3]].to_csv(tmp_path / "a.csv", index=False)
    np.save(tmp_path / "a.npy", values[:, :3])
    for file, names, again in (("a.csv", "gene 0,gene 0,gene 1", "gene 0"), ("a.npy", "2,1,2", "2")):
        message = f"mikernels: --y: expected each name once, got {again!r} more than once"
        assert refusal(tmp_path / file, "--y", names) == message


def test_chosen_columns_are_in_the_order_of_their_places():
    array = np.arange(6).reshape(2, 3)
    for places in ([0, 1, 2], [2, 1, 0], [0, 0, 1], [1]):
        assert np.array_equal(select(array, places), np.stack([array[:, i] for i in places], 1))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"a,b\n1,2\n", "expected Parquet, as its name says, got text"),
        ("a.csv", b"PAR1....", "expected text, as its name says, got Parquet"),
        ("a.csv", b"PK\x03\x04....", "expected text, as its name says, got a zip archive"),
        ("a.npy", b"\x89HDF\r\n\x1a\n", "expected a NumPy array, as its name says, got HDF5"),
        ("a.h5ad", b"\x00\x01\x02", "expected HDF5, as its name says, got something else"),
        ("a.csv.gz", b"a,b\n1,2\n", "expected gzip, as its name says, got text"),
        ("a.parquet", b"PAR1 and no more", "expected Parquet that is complete, got "),
        ("a.npy", b"\x93NUMPY\x01\x00", "expected a NumPy array that is complete, got "),
        ("a.xlsx", b"", "expected a name that ends in .csv, .tsv, .parquet, .npy, .h5ad, got 'a.xlsx'"),
        ("a.csv", b"", "expected a first line with the names of the columns, got an empty file"),
        ("a.csv", b"a,b\n", "expected at least 8 samples (rows), got 0"),
        (
            "a.csv",
            b"a\tb\n" + b"1\t2\n" * 9,
            "expected columns that are separated by ',', got one column with",
        ),
        (
            "a.csv",
            b"0.5,1.5\n" * 9,
            "expected a first line with the names of the columns, got 0.5, 1.5; add --no-header if",
        ),
        (
            "a.csv",
            b"1,NA,7,true\n" * 9,  # a missing and a truth value among them
            "expected a first line with the names of the columns, got 1, NA, 7, ...; add --no-header if",
        ),
        (
            "a.csv",
            b"3,1\n" * 9,
            "expected a first line with the names of the columns, got 3, 1; add --no-header if",
        ),
        ("a.csv", b"a,b,a\n" + b"1,2,3\n" * 9, "expected columns of different names, got 'a' more than once"),
        ("a.csv", b"a,b\n1\n" * 9, "expected text that is complete, got "),
        *(
            (
                "a.csv",
                b"a,b,c\n" + b"1,2,3\n" * 9 + row,
                f"expected integers between -2^53 and 2^53, which float64 holds exactly, got {number} in column 'b'; "
                "subtract an offset, or leave the column out with --drop",
            )
            for number, row in (
                ("18446744073709551617", b"1e300, 18446744073709551617,3"),  # beyond 64 bits
                (
                    "-9007199254740993",
                    b"1,-9007199254740993,.5\n1,18446744073709551617,1",
                ),  # beside fractions
                ("9007199254740993", b'1,"9007199254740993",3\n1,0.5,3'),  # and in one column with one
            )
        ),
        (
            "a.csv",
            b"a,b\n" + b"1,\n" * 9,
            "expected finite values, got 9 NaN and 0 infinite in 1 of 2 columns (the first is column 'b')",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be(name, content, words, refusal, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert f"mikernels: {path}: {words}" in refusal(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top=0"], "--top: expected at least 1, got 0"),
        (["--fdr=2"], "--fdr: expected a rate between 0 and 1, got 2.0"),
        (
            ["--threshold=high"],
            "--threshold: expected a number of nats or null:Q, such as null:0.999, got 'high'",
        ),
        (["--threshold=nan"], "--threshold: expected a number of nats or null:Q"),
        (["--threshold=nul:0.9"], "--threshold: expected a number of nats or null:Q"),
        (["--threshold=null:9"], "--threshold: expected a quantile between 0 and 1, got 9.0"),
        (
            ["--out=edges.xls"],
            "edges.xls: expected a name that ends in .csv, .tsv, .parquet, got 'edges.xls'",
        ),
        (["--out=edges.csv.gz"], "expected a name that ends in .csv, .tsv, .parquet, got 'edges.csv.gz'"),
        (["--out=nowhere/edges.csv"], "expected a file in a folder that exists"),
        (["--matrix=mi.csv"], "mi.csv: expected a name that ends in .npy"),
        (["--no-header"], "--no-header: expected a table in .csv or .tsv with it, got "),
        (["--matrix=mi.npy", "--out=e.csv"], "--out: expected none with --matrix"),
        (["--matrix=mi.npy"], "--draws: expected none with --matrix, which has no p-values"),
        (["--matrix=mi.npy", "--time-series"], "--time-series: expected none with --matrix"),
        (["--y=gene 1,gene 99"], "--y: expected names of columns or a file, got 'gene 99', which is none"),
        (["--drop=gene 99"], "--drop: expected names of columns, got 'gene 99', which is none"),
        (["--fdr=0.05", "--transform=standardize"], "--fdr and null:Q: expected ranks"),
        (["--nodes=1"], "nodes: expected an integer from 2 to 256, got 1"),
        (["--memory-budget=9"], "memory_budget: expected at least"),
        (["--estimator=kde", "--precision=fp8"], "precision: expected one of"),
    ],
)
def test_arguments_that_cannot_be(arguments, words, data, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(data, *arguments, "--draws=2000", "--quiet")
    assert os.listdir(tmp_path) == ["data.parquet"]


def test_the_input_is_not_overwritten(data, refusal):
    assert "expected another file than the samples are in" in refusal(data, "--out", data)


def test_it_runs_without_transformers_and_tells_of_what_is_missing(data):
    script = f"""
import json, sys
for name in ("transformers", "anndata", "scipy", "sklearn", "triton"):
    sys.modules[name] = None
from mikernels.cli import main
from mikernels.files import matrix_file
done = main([{data!r}, "--draws=2000", "--quiet"])
open("a.h5ad", "wb").write(b"\\x89HDF\\r\\n\\x1a\\n")
print(json.dumps([done, main(["a.h5ad"])]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=os.path.dirname(data),
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # also where the package is not installed
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 1]
    assert "mikernels: anndata: expected it to be installed; run pip install 'anndata'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--draws=2000"],
        ["--draws=2000", "--y=gene 1,gene 3"],
        ["--matrix=mi.npy"],
        ["--draws=2000", "--fdr=0.01"],
    ],
)
def test_the_bar_counts_every_pair_once(arguments, data, monkeypatch, tmp_path, small_tiles):
    """Tiles on the diagonal count for their upper half."""
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.chdir(tmp_path)
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, **keywords):
            super().__init__(**keywords | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    assert main([data, *arguments]) == 0
    assert [bar.n for bar in bars] == [20 if "--y=gene 1,gene 3" in arguments else 78]
    assert [bar.total for bar in bars] == [bar.n for bar in bars]
