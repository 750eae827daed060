"""Parquet files and data sets of the hub as calibration text; a folder of Parquet files stands for the hub."""

import sys

import pytest
import torch

from pruning import prune
from pruning.observe.sources import ParquetFile, Records, open_source

from tiny import tiny_model, tiny_tokenizer

TEXTS = [f"document number {i}" for i in range(40)]


def write(path, columns, rows_per_group=7):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(arrow.table(columns), path, row_group_size=rows_per_group)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The current folder, with the data set `two`: two splits, and a column beside the text."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "two" / "train.parquet", {"id": list(range(40)), "text": TEXTS})
    write(tmp_path / "two" / "test.parquet", {"id": [0], "text": ["held out"]})
    return datasets


@pytest.mark.parametrize("start", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_a_parquet_file_gives_its_rows_from_any_place(tmp_path, start):
    path = write(tmp_path / "a.parquet", {"id": list(range(40)), "text": TEXTS})
    source = open_source(str(path))
    assert isinstance(source, ParquetFile)
    first, *others = list(source.documents(start)) or [""]
    assert others == TEXTS[int(start * 40) + 1 :]
    if start < 1:
        share, whole = start * 40 - int(start * 40), TEXTS[int(start * 40)]
        assert first == (whole[int(share * len(whole)) :].partition(" ")[2] if share else whole)


def test_conversations_in_a_parquet_file_are_lists_of_messages(tmp_path):
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    path = write(tmp_path / "a.parquet", {"messages": chats})
    assert list(open_source(path).documents()) == chats


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, r"a\.parquet: expected a field 'text', .*, got 'body'"),
        ({"text": ["a"] * 9 + [None]}, r"a\.parquet: row 9: expected 'text' to hold a text"),
        ({"text": [1, 2]}, r"a\.parquet: row 0: expected 'text' to hold a text"),
        ({"text": [""]}, r"a\.parquet: expected text, got an empty file"),
    ],
)
def test_a_parquet_file_without_text_is_refused_by_name(tmp_path, columns, message):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=message):
        list(open_source(path).documents())


def test_a_file_that_is_no_parquet_file_is_refused_by_name(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a Parquet file: "):
        open_source(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("spec", "texts"), [("two::test", ["held out"]), ("two:default", TEXTS), ("two::train[:5]", TEXTS[:5])]
)
def test_a_data_set_gives_the_texts_of_one_split(hub, capfd, spec, texts):
    source = open_source(spec)
    assert isinstance(source, Records)
    assert list(source.documents()) == texts
    assert source.rows.column_names == ["text"]
    assert source.name == spec
    assert capfd.readouterr().err == ""
    assert not hub.are_progress_bars_disabled()


@pytest.mark.parametrize("name", ["./two", "{}/two", "../{}/two"])
def test_a_data_set_in_a_folder_may_be_named_by_any_path(hub, tmp_path, name):
    spec = name.format(tmp_path.name if name.startswith("..") else tmp_path) + "::test"
    assert list(open_source(spec).documents()) == ["held out"]


@pytest.mark.parametrize(
    ("spec", "message"), [("two", r"name the split: two::train"), ("two::absent", "absent")]
)
def test_a_data_set_without_the_split_is_refused(hub, spec, message):
    with pytest.raises((OSError, ValueError), match=message):
        open_source(spec)


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("org/name", ("org/name", None, "train")),
        ("cnn_dailymail:3.0.0:test[:1%]", ("cnn_dailymail", "3.0.0", "test[:1%]")),
    ],
)
def test_names_of_the_hub_may_hold_dots_and_slashes(hub, monkeypatch, spec, arguments):
    rows = hub.load_dataset("two", split="train")
    calls = []

    def load_dataset(name, config, *, split):
        calls.append((name, config, split))
        return rows

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    assert list(open_source(spec).documents()) == TEXTS
    assert calls == [arguments]


def test_a_data_set_in_memory_calibrates_as_its_texts_do(hub):
    rows = hub.load_dataset("two", split="train")
    options = {"multiple_of": 2, "sequence_length": 8, "calibration_tokens": 256, "sample_size": 64}
    models = [tiny_model("Llama"), tiny_model("Llama")]
    for model, calibration in zip(models, (rows, "\n\n".join(TEXTS)), strict=True):
        prune(model, tiny_tokenizer(), calibration=calibration, **options)
    for weight, expected in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize(("package", "spec"), [("pyarrow.parquet", "a.parquet"), ("datasets", "org/name")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, package, spec):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_text("")
    with pytest.raises(ImportError, match=r"pip install 'mikernels\[data\]'"):
        open_source(spec)
