"""A thousand malformed inputs: only documented errors, one line from the command, and no changed input."""

import json
import random
import shutil
from contextlib import suppress

import pytest
import torch

import mikernels
from pruning import Settings, prune
from pruning.cli import main

from tiny import tiny_model

DOCUMENTED = (TypeError, ValueError, OSError, RuntimeError, ImportError)
SHORT = ("--sequence-length=16", "--calibration-tokens=128", "--multiple-of=2", "--sample-size=64", "--quiet")
ODD = (None, True, -1, 0, 1e400, float("nan"), 10**30, "", "\ud800", "1", b"1", [], {}, [[]], object(), 1j)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Truncated, emptied, or with flipped bits, of which most hit the beginning, where the structure is."""
    kind = draw.random()
    if kind < 0.3:
        return data[: draw.randrange(min(len(data), draw.choice((8, 200, len(data)))))]
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(min(len(changed), draw.choice((16, 1000, len(changed)))))] ^= (
            1 << draw.randrange(8)
        )
    return bytes(changed)


def damaged_json(text: bytes, draw: random.Random) -> bytes:
    """An entry with a wrong type, under another name, or gone."""
    entries = json.loads(text)
    key, kind = draw.choice(list(entries)), draw.randrange(3)
    value = entries.pop(key)
    if kind == 0:
        entries[key + "_"] = value
    elif kind == 1:
        entries[key] = draw.choice((None, -1, 0, "x", [], {}, 1.5, 10**6))
    return json.dumps(entries).encode()


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("fuzz")
    tiny_model("Llama").save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "text.txt").write_text("All happy families are alike. " * 20)
    arguments = [str(root / "model"), "--out", str(root / "first"), *SHORT]
    assert main([*arguments, "--save-statistics", str(root / "statistics")]) == 0
    return root


@pytest.mark.parametrize("seed", range(10))
def test_damaged_files_give_one_line_and_stay_as_they_are(root, tmp_path, monkeypatch, capsys, seed):
    draw = random.Random(seed)  # noqa: S311
    monkeypatch.chdir(tmp_path)
    text, statistics = (root / "text.txt").read_bytes(), (root / "statistics").read_bytes()
    for case in range(20):
        shutil.copytree(root / "model", "model", dirs_exist_ok=True)
        files = {"text.txt": text, "statistics": statistics}
        files |= {f"model/{file.name}": file.read_bytes() for file in (root / "model").iterdir()}
        name = draw.choice(sorted(files))
        is_json = name.endswith(".json") and draw.random() < 0.6
        files[name] = (damaged_json if is_json else damaged)(files[name], draw)
        for path, data in files.items():
            (tmp_path / path).write_bytes(data)
        source = (
            ["--statistics=statistics", "--repair=lstsq"]
            if name == "statistics"
            else ["--calibration=text.txt"]
        )
        status = main(["model", "--out", f"out-{case}", *source, *SHORT])
        error = capsys.readouterr().err
        assert (status, error.count("\n")) in ((0, 0), (1, 1)), (name, error)
        assert all((tmp_path / path).read_bytes() == data for path, data in files.items()), name
        assert (tmp_path / f"out-{case}").exists() == (status == 0)


def test_odd_arrays_and_settings_give_documented_errors():
    draw = random.Random(0)  # noqa: S311
    names = list(Settings.__dataclass_fields__)
    for _ in range(600):
        options = {draw.choice(names): draw.choice(ODD) for _ in range(draw.randint(1, 2))}
        x = torch.randn(draw.choice((0, 1, 7, 64)), draw.choice((0, 1, 3)))
        x = draw.choice((x, x.to(torch.complex64), x[:, 0] if x.shape[1] else x, x / 0, x.numpy(), *ODD))
        for call in (
            lambda options=options: Settings(**options),
            lambda x=x: mikernels.mutual_information(x),
        ):
            with suppress(*DOCUMENTED):
                call()


def test_odd_calibration_gives_documented_errors(tokenizer):
    model, draw = tiny_model("Llama"), random.Random(0)  # noqa: S311
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(200):
        calibration = draw.choice(
            (*ODD[1:], torch.zeros(0, 4), torch.full((1, 4), 10**6), [draw.choice(ODD)])
        )
        with pytest.raises(DOCUMENTED):
            prune(model, draw.choice((None, tokenizer)), calibration=calibration, multiple_of=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
