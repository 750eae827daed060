"""One definition of each option: the operators, the defaults and the documentation follow it."""

import inspect
import pydoc

import pytest
import torch

from mikernels import (
    mutual_information,
    null_distribution,
    pairs_above,
    permuted_null,
    shifted_null,
    split_half_reliability,
    top_pairs,
)
from mikernels.options import OPTIONS, Option, from_operator, resolve, to_operator

from samples import gaussian


def test_every_option_is_documented():
    text = inspect.getdoc(mutual_information)
    assert [name for name in OPTIONS if f"\n    {name}:" not in text] == []


@pytest.mark.parametrize(
    "function",
    [
        mutual_information,
        top_pairs,
        pairs_above,
        split_half_reliability,
        null_distribution,
        permuted_null,
        shifted_null,
    ],
)
def test_signatures_show_every_option_with_its_default(function):
    parameters = inspect.signature(function).parameters
    shown = {name: parameters[name].default for name in OPTIONS}
    assert shown == {name: option.default for name, option in OPTIONS.items()}
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert list(parameters)[-len(OPTIONS) :] == list(OPTIONS)
    assert "nodes: int = 16" in pydoc.render_doc(function)


def test_defaults_that_signatures_show_are_those_used():
    explicit = {name: option.default for name, option in OPTIONS.items()}
    assert torch.equal(
        null_distribution(64, draws=10).values, null_distribution(64, draws=10, **explicit).values
    )


def test_operators_take_every_option_that_has_a_schema():
    schema = torch.ops.mikernels.mutual_information.default._schema
    taken = [name for name, option in OPTIONS.items() if option.schema]
    assert [argument.name for argument in schema.arguments] == ["x", "y", *taken]


def test_options_survive_the_operators():
    options = resolve({"estimator": "kde", "bandwidth": 0.5, "seed": -1, "memory_budget": 2**20}, 64)
    assert from_operator(to_operator(options)) == {
        name: options[name] for name in OPTIONS if name != "device"
    }
    assert options["seed"] == 2**32 - 1


def test_resolved_options_hold_numbers_in_place_of_rules():
    assert resolve({}, 64)["bandwidth"] == pytest.approx(max(64 ** (-1 / 6), 0.75 * 4.8 / 15))
    assert resolve({"bandwidth": "silverman", "estimator": "kde"}, 64)["bandwidth"] == pytest.approx(0.5)
    assert resolve({}, 64)["calibrate"] is False
    assert resolve({"estimator": "adaptive"}, 64)["calibrate"] is True


def test_defaults_are_those_that_the_options_name():
    x = gaussian(64, 4)
    explicit = {name: option.default for name, option in OPTIONS.items()}
    assert all(isinstance(option, Option) for option in OPTIONS.values())
    assert torch.equal(mutual_information(x), mutual_information(x, **explicit))
