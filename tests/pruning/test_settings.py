"""`Settings` is the one definition of every option."""

import json
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from pruning import Settings
from pruning.arguments import ALIASES, command_parser
from pruning.settings import choices, help_text

OPTIONS = [f.name for f in fields(Settings)]


def test_the_command_without_flags_uses_the_defaults():
    args = command_parser().parse_args(["model", "--out=out"])
    assert Settings(**{name: getattr(args, name) for name in OPTIONS}) == Settings()


@pytest.mark.parametrize(
    "field", [f for f in fields(Settings) if type(f.default) in (int, float)], ids=lambda f: f.name
)
def test_a_number_on_the_command_line_has_the_type_of_the_default(field):
    flag = f"--{field.name.replace('_', '-')}={field.default}"
    given = getattr(command_parser().parse_args(["model", "--out=out", flag]), field.name)
    assert (given, type(given)) == (field.default, type(field.default))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_flag_with_help_and_documented(name):
    (action,) = [a for a in command_parser()._actions if a.dest == name]
    switched_off = "no-" if getattr(Settings, name) is True else ""
    flag = "--" + switched_off + name.replace("_", "-")
    assert action.option_strings == [flag, *ALIASES.get(name, ())]
    assert action.help == help_text(name)
    assert tuple(action.choices or ()) == choices(name)
    assert name in Settings.__doc__


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0.1", 0.1), ("null:0.99", "null:0.99"), ("1", 1.0)],
    ids=["nats", "rule", "integer"],
)
def test_the_threshold_is_a_number_or_a_rule(given, expected):
    args = command_parser().parse_args(["model", "--out=out", "--threshold", given])
    assert args.threshold == expected


@pytest.mark.parametrize("number", [np.float32(0.25), np.float16(0.25), torch.tensor(0.25), np.array(0.25)])
def test_numbers_of_other_libraries_become_plain_ones(number):
    settings = Settings(
        ratio=number, budget="mi", max_layer_ratio=number, criterion="random-pairs", threshold=number
    )
    assert settings == Settings(
        ratio=0.25, budget="mi", max_layer_ratio=0.25, criterion="random-pairs", threshold=0.25
    )
    assert json.loads(json.dumps(asdict(settings)))["threshold"] == 0.25


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_integers_of_other_libraries_become_plain_ones(kind):
    names = [f.name for f in fields(Settings) if type(f.default) is int or f.name == "multiple_of"]
    settings = Settings(**{name: kind(9) for name in names}, criterion="random-pairs")
    assert settings == Settings(**dict.fromkeys(names, 9), criterion="random-pairs")
    assert '"seed": 9' in json.dumps(asdict(settings))


@pytest.mark.parametrize("true", [np.True_, torch.tensor(True), 1])
def test_booleans_of_other_libraries_become_plain_ones(true):
    assert Settings(refine=true).refine is True


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [[1], (2, 3), 1j, np.array([1, 2]), object(), {}, b"1"])
def test_values_of_another_kind_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("nodes", "seed", "batch_size", "multiple_of", "clusters")
        for value in (4.0, True, "4", None, float("nan"))
        if (name, value) != ("multiple_of", None)
    ],
)
def test_integers_are_not_rounded(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer"):
        Settings(**{name: value})


def test_the_command_reads_a_multiple():
    assert command_parser().parse_args(["model", "--out=out", "--multiple-of", "8"]).multiple_of == 8


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
@pytest.mark.parametrize("name", ["seed", "batch_size"])
def test_integers_beyond_64_bits_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer of 64 bits"):
        Settings(**{name: value})
