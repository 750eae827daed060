"""A thousand malformed inputs: only documented errors, one line from the command, and no changed input."""

import itertools
import json
import random
import shutil
from contextlib import suppress

import numpy
import pytest
import torch

import mikernels
from pruning import Settings, prune
from pruning.cli import main

from tiny import tiny_model

DOCUMENTED = (TypeError, ValueError, OSError, RuntimeError, ImportError)
SHORT = ("--sequence-length=16", "--calibration-tokens=128", "--multiple-of=2", "--sample-size=64", "--quiet")
ODD = (None, True, -1, 0, 1e400, float("nan"), 10**30, "", "\ud800", "1", b"1", [], {}, [[]], object(), 1j)
ODD_TEXTS = ("", "nan", "1e400", "-1", "0.0", "1j", "[]", "\ud800", "grid,kde", "9" * 40, "--seed")
STRICT = ("model/model.safetensors", "model/config.json", "model/tokenizer.json", "statistics")
"""Files of which every byte counts, so that half of one is an error."""


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
    tiny_model("Llama", num_hidden_layers=1).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "text.txt").write_text("All happy families are alike. " * 20)
    arguments = [str(root / "model"), "--out", str(root / "first"), *SHORT]
    assert main([*arguments, "--save-statistics", str(root / "statistics")]) == 0
    return root


@pytest.mark.parametrize("seed", range(8))
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
        cut = len(files[name]) < len((root / name).read_bytes()) and not is_json
        status = main(["model", "--out", f"out-{case}", *source, *SHORT])
        error = capsys.readouterr().err
        assert (status, error.count("\n")) in ((0, 0), (1, 1)), (name, error)
        assert all((tmp_path / path).read_bytes() == data for path, data in files.items()), name
        assert not (status == 0 and cut and name in STRICT), name
        assert (tmp_path / f"out-{case}").exists() == (status == 0)


def faulty_array(draw):
    """An array with one fault, and a good one."""
    good = torch.randn(64, 3)
    spoiled = good.clone()
    spoiled[draw.randrange(64), draw.randrange(3)] = draw.choice((float("nan"), float("inf"), -float("inf")))
    array = good.numpy()
    faulty = (
        *ODD,
        spoiled,
        spoiled.numpy(),
        spoiled.tolist(),
        good[: draw.randrange(8)],
        good[:, :0],
        good[None],
        good[0, 0],
        good.to(torch.complex64),
        good.to_sparse(),
        torch.nested.nested_tensor([good, good[:9]], layout=torch.jagged),
        torch.full((64, 3), 2**60),
        array.astype(str),
        array.astype(object),
        array.astype("datetime64[s]"),
        numpy.ma.masked_greater(array, 0),
        numpy.zeros((64, 3), [("a", "f4")]),
        [[1.0, 2.0], *[[1.0]] * 20],
        [good.tolist(), "text"],
    )
    return draw.choice(faulty), good


def test_arrays_with_one_fault_are_refused():
    draw = random.Random(0)  # noqa: S311
    calls = (
        lambda faulty, good: mikernels.mutual_information(faulty),
        lambda faulty, good: mikernels.mutual_information(good, faulty),
        lambda faulty, good: mikernels.mutual_information(faulty, good),
        lambda faulty, good: mikernels.top_pairs(faulty, 2),
        lambda faulty, good: mikernels.pairs_above(faulty, 0.1),
        lambda faulty, good: mikernels.split_half_reliability(faulty),
    )
    for _ in range(200):
        faulty, good = faulty_array(draw)
        call = draw.choice(calls[:1] + calls[2:] if faulty is None else calls)
        with pytest.raises((TypeError, ValueError)):
            call(faulty, good)
    with pytest.raises(ValueError, match="x: expected values, got a tensor on the meta device"):
        mikernels.pairs_above(torch.empty(64, 3, device="meta"), 0.1)


SETTINGS = {
    "refine": (True, 0),
    "bos": (True, 0),
    "text": (True, 0),
    "threshold": (None, -1, 0, 1e400, 10**30),
    "seed": (-1, 0),
}
SETTINGS |= dict.fromkeys(("multiple_of", "target_params", "target_bytes", "memory_budget"), (None,))
SETTINGS["only"] = (None, *(value for value in ODD if isinstance(value, str) and value.isidentifier()))
OPTIONS = {
    "bandwidth": (None,),
    "calibrate": (None, True, 0),
    "memory_budget": (None, 10**30),
    "seed": (-1, 0, 10**30),
    "autotune": (True, 0),
    "check_finite": (True, 0),
    "device": (None, True, 0),  # the first GPU, if there is one
}
"""The few values of `ODD` that the pruner's settings and the engine's options take."""


def bad_values(names, good):
    """Every option with every odd value that it must not take."""
    for name, value in itertools.product(names, ODD):
        if not any(type(value) is type(other) and value == other for other in good.get(name, ())):
            yield name, value


def test_bad_settings_are_refused_alone_and_beside_others():
    draw, names = random.Random(0), list(Settings.__dataclass_fields__)  # noqa: S311
    for name, value in bad_values(names, SETTINGS):
        others = {"criterion": "random-pairs"}
        if name not in ("threshold", "clusters", "candidates"):  # these need it
            others = draw.choice((others, {}, {draw.choice(names): draw.choice(ODD)}))
        with pytest.raises((TypeError, ValueError)):
            Settings(**others | {name: value})


def test_bad_options_of_the_engine_are_refused_by_name():
    x = torch.randn(64, 3)
    for name, value in bad_values(mikernels.options.OPTIONS, OPTIONS):
        with pytest.raises(ValueError, match=name):
            mikernels.mutual_information(x, **{name: value})


def test_bad_flags_of_the_command_are_one_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pruning.comparing.load_model", None)
    for name, text in itertools.product(Settings.__dataclass_fields__, ODD_TEXTS):
        if name in ("refine", "bos", "only") or (name, text) == ("seed", "-1"):  # no value, a good value
            continue
        with suppress(SystemExit):  # from argparse
            assert main(["model", "--out", str(tmp_path / "out"), f"--{name.replace('_', '-')}={text}"]) == 1
        error = capsys.readouterr().err
        assert name in error.replace("-", "_"), (name, text)
    assert list(tmp_path.iterdir()) == []


def test_odd_calibration_gives_documented_errors(tokenizer):
    model, draw = tiny_model("Llama"), random.Random(0)  # noqa: S311
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(150):
        calibration = draw.choice(
            (*ODD[1:], torch.zeros(0, 4), torch.full((1, 4), 10**6), [draw.choice(ODD)])
        )
        with pytest.raises(DOCUMENTED):
            prune(model, draw.choice((None, tokenizer)), calibration=calibration, multiple_of=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
