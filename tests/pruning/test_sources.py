"""Where calibration text comes from: plain text, JSON lines, conversations, several sources, and large files."""

import json

import pytest

from pruning.observe import sequences, sources
from pruning.observe.sequences import token_sequences
from pruning.observe.sources import open_source, open_sources

from tiny import tiny_tokenizer

OPTIONS = {"special_tokens": False, "bos": True}


def read(source, tokenizer, length=16, n_tokens=64):
    return [
        tokenizer.decode(ids)
        for ids in token_sequences(source, tokenizer, length=length, n_tokens=n_tokens, **OPTIONS)
    ]


def test_json_lines_are_the_texts_joined_by_blank_lines(tmp_path, tokenizer):
    texts = [f"document number {i}" for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    found = [read(open_source(tmp_path / name), tokenizer) for name in ("a.jsonl", "a.txt")]
    assert found[0] == found[1]
    assert all(window in "\n\n".join(texts) for window in found[0])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf\n "])
def test_a_json_file_is_a_list_of_records_or_json_lines(tmp_path, mark):
    records = [{"text": f"document {i}"} for i in range(8)]
    (tmp_path / "list.json").write_bytes(mark + json.dumps(records).encode())
    (tmp_path / "lines.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = [record["text"] for record in records]
    assert list(open_source(tmp_path / "list.json").documents(0.5)) == texts[4:]
    for name in ("list.json", "lines.json"):
        assert list(open_source(tmp_path / name).documents()) == texts


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e308", "x", ""])
def test_weights_out_of_range_are_refused_by_name(weight):
    with pytest.raises(ValueError, match=r"builtin=.*: expected a number from 1e-9 to 1e9 behind '='"):
        open_sources([f"builtin={weight}"])


def test_a_byte_order_mark_is_no_text(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"sixteen letters " * 8)
    assert read(open_source(tmp_path / "a.txt"), tokenizer)[0] == "sixteen letters "


def test_line_ends_of_windows_are_those_of_other_systems(tmp_path, tokenizer):
    text = "a line of text\n" * 9000  # more than one piece
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "windows.txt").write_bytes(text.replace("\n", "\r\n").encode())
    found = [read(open_source(tmp_path / name), tokenizer) for name in ("unix.txt", "windows.txt")]
    assert found[0] == found[1]


def test_conversations_go_through_the_chat_template_one_by_one(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    found = read(open_source(tmp_path / "a.jsonl"), tokenizer, length=64, n_tokens=1024)
    assert sorted(found) == [f"user: q{i};assistant: a;" for i in range(4)]


def test_several_sources_have_weights(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    opened = open_sources([f"{tmp_path / 'a.txt'}=3", str(tmp_path / "b.txt")])
    assert [(source.name, weight) for source, weight in opened] == [
        (str(tmp_path / "a.txt"), 3.0),
        (str(tmp_path / "b.txt"), 1.0),
    ]


def test_a_large_file_is_read_in_places(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sequences, "WHOLE", 1000)
    text = " ".join(f"w{i:06d}" for i in range(200_000))  # 1.6 MB
    (tmp_path / "a.txt").write_text(text)
    found = read(open_source(tmp_path / "a.txt"), tokenizer, length=16, n_tokens=160)
    assert len(found) == 10
    assert all(window in text for window in found)
    places = [text.index(window) / len(text) for window in found]
    assert all(abs(place - i / 10) < 0.01 for i, place in enumerate(places))


@pytest.mark.parametrize("n_records", [1, 4])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet", "memory"])
def test_few_long_texts_give_as_many_windows_as_many_short_ones(
    kind, n_records, tmp_path, tokenizer, monkeypatch
):
    """Windows lie where they would in one text, whatever it is cut into; none is read twice."""
    monkeypatch.setattr(sequences, "WHOLE", 1000)
    monkeypatch.setattr(sources, "PIECE_BYTES", 256)
    words = [f"w{i:06d}" for i in range(20_000)]
    texts = [
        " ".join(words[i * 20_000 // n_records : (i + 1) * 20_000 // n_records]) for i in range(n_records)
    ]
    path = tmp_path / f"a.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "json":
        path.write_text(json.dumps(texts))
    elif kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": texts}), path)
    source = sources.Records("memory", texts, "\n\n") if kind == "memory" else open_source(path)
    found = read(source, tokenizer, length=16, n_tokens=320)
    assert len(set(found)) == 20
    places = [int(window.split("w")[1][:6]) / 20_000 for window in found]
    assert places == pytest.approx([i / 20 for i in range(20)], abs=0.01)


@pytest.mark.parametrize("text", ["文字" * 5000, "\n".join(f"w{i:04d}" for i in range(2000))])
def test_texts_without_spaces_are_cut_within_too(text):
    source = sources.Records("memory", [text, text], "\n\n")
    (rest, other) = source.documents(0.25)
    assert text.endswith(rest)
    assert len(rest) == pytest.approx(len(text) / 2, abs=10)
    assert not rest[0].isspace()
    assert other == text


def test_a_record_that_a_place_is_the_beginning_of_is_whole():
    rows = [f"record {i}" for i in range(100)]
    for i in range(100):
        assert list(sources.Records("memory", rows, "\n\n").documents(i / 100)) == rows[i:]


def test_long_texts_that_stand_alone_are_read_once_each(tokenizer, monkeypatch):
    monkeypatch.setattr(sequences, "WHOLE", 1000)
    texts = [" ".join(f"{name}{i}" for i in range(2000)) for name in "abc"]
    found = read(sources.Records("memory", texts), tokenizer, length=16, n_tokens=320)
    assert [window[:2] for window in found] == ["a0", "b0", "c0"]


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{oops\n', ValueError, "JSON"),
        ("a.jsonl", b'{"body": "a"}\n', ValueError, "body"),
        ("a.json", b'[{"text": "a"}', ValueError, r"a\.json: expected a list of JSON records"),
        ("a.json", b"[]", ValueError, r"a\.json: expected text, got an empty file"),
        ("a.json", b'[{"text": 1}]', ValueError, r"a\.json: row 0: expected 'text' to hold a text"),
        ("a.txt", b"\xff\xfe\x00", ValueError, "UTF-8"),
        ("a.txt", b"a character that is cut off: \xc3", ValueError, "UTF-8"),
        ("a.txt", b"", ValueError, "expected"),
    ],
)
def test_files_without_text_are_refused_by_name(tmp_path, tokenizer, name, data, error, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=message):
        read(open_source(tmp_path / name), tokenizer)
