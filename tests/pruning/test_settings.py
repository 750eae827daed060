"""`Settings` is the one definition of every option."""

from dataclasses import fields

import pytest

from pruning import Settings
from pruning.cli import _parser
from pruning.settings import choices, help_text

OPTIONS = [f.name for f in fields(Settings)]


def test_the_command_without_flags_uses_the_defaults():
    args = _parser().parse_args(["model", "--out=out"])
    assert Settings(**{name: getattr(args, name) for name in OPTIONS}) == Settings()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_flag_with_help_and_documented(name):
    (action,) = [a for a in _parser()._actions if a.dest == name]
    switched_off = "no-" if getattr(Settings, name) is True else ""
    assert action.option_strings == ["--" + switched_off + name.replace("_", "-")]
    assert action.help == help_text(name)
    assert tuple(action.choices or ()) == choices(name)
    assert name in Settings.__doc__


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0.1", 0.1), ("null:0.99", "null:0.99"), ("1", 1.0)],
    ids=["nats", "rule", "integer"],
)
def test_the_threshold_is_a_number_or_a_rule(given, expected):
    args = _parser().parse_args(["model", "--out=out", "--threshold", given])
    assert args.threshold == expected
