"""What docs/api-stability.md promises: names, signatures, operators, errors, memory and where results go."""

import inspect

import numpy as np
import pytest
import torch

import mikernels
from mikernels import (
    MikernelsError,
    Null,
    RankError,
    SamplesError,
    UnsupportedError,
    Workspace,
    WorkspaceError,
    mutual_information,
    null_distribution,
    workspace_bytes,
)
from mikernels.options import OPTIONS

from samples import METHODS, correlated, gaussian, options, smallest_budget

INPUTS = (
    "Tensor x, Tensor? y, str estimator, int nodes, float? bandwidth, str transform, bool calibrate, str impl, "
    "str precision, int? memory_budget, int seed, bool autotune, bool check_finite"
)
SCHEMAS = {
    "mutual_information": f"({INPUTS}) -> Tensor",
    "mutual_information_out": f"({INPUTS}, Tensor(a!) out) -> ()",
    "top_pairs": f"({INPUTS}, int k) -> (Tensor, Tensor, Tensor)",
    "pairs_above": f"({INPUTS}, float threshold) -> (Tensor, Tensor, Tensor)",
}
"""Graphs that were exported call these: within a major version only new arguments may come, last, with defaults."""


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_of_operators_stay(name):
    operator = getattr(torch.ops.mikernels, name).default
    assert str(operator._schema) == f"mikernels::{name}{SCHEMAS[name]}"


PARAMETERS = {
    "mutual_information": "x y | out process_group",
    "top_pairs": "x k y | process_group",
    "pairs_above": "x threshold y | process_group",
    "workspace_bytes": "x y |",
    "permuted_null": "x y | draws",
    "shifted_null": "x y | draws",
    "split_half_reliability": "x | groups",
    "gaussian_conditional_information": "x given | device",
    "null_distribution": "n_samples | draws",
    "samples_for": "reliability target |",
    "bits": "mi |",
    "information_correlation": "mi |",
    "clear_caches": "|",
}
"""Before the bar by position, after it by keyword; the options that all share come last."""


def test_every_function_takes_arrays_first_then_what_it_needs_then_keywords():
    functions = {n: f for n in mikernels.__all__ if inspect.isfunction(f := getattr(mikernels, n))}
    found = {}
    for name, function in functions.items():
        own = [p for p in inspect.signature(function).parameters.values() if p.name not in OPTIONS]
        if "device" in PARAMETERS[name]:
            own = list(inspect.signature(function).parameters.values())
        by_position = [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        by_keyword = [p.name for p in own if p.kind is p.KEYWORD_ONLY]
        found[name] = " ".join([*by_position, "|", *by_keyword])
    assert found == PARAMETERS


@pytest.mark.parametrize(
    ("call", "error", "base"),
    [
        (lambda x: mutual_information("text"), SamplesError, TypeError),
        (lambda x: mutual_information(x.to_sparse()), SamplesError, TypeError),
        (lambda x: mutual_information(x[:5]), SamplesError, ValueError),
        (lambda x: mutual_information(x * float("nan")), SamplesError, ValueError),
        (lambda x: mutual_information(x, x[:9]), SamplesError, ValueError),
        (lambda x: mutual_information(x, device="cuda:99"), UnsupportedError, ValueError),
        (lambda x: mutual_information(x, precision="fp8"), UnsupportedError, ValueError),
        (lambda x: workspace_bytes(x, impl="reference"), UnsupportedError, ValueError),
        (lambda x: mutual_information(x, memory_budget=9), WorkspaceError, ValueError),
        (lambda x: mikernels.GridStream(x, memory_budget=9), WorkspaceError, ValueError),
        (lambda x: mikernels.GridStream(x).update(x[:, :2]), SamplesError, ValueError),
        (lambda x: mikernels.shifted_null(x[:, :1]), SamplesError, ValueError),
        (lambda x: mikernels.split_half_reliability(x[:, :2]), SamplesError, ValueError),
        (lambda x: mikernels.gaussian_conditional_information(x, x[:9]), SamplesError, ValueError),
        (lambda x: Null({}, x[0]).fdr_threshold(x[0], 0.1), SamplesError, ValueError),
    ],
)
def test_errors_have_a_class_for_each_cause_and_stay_what_they_were(call, error, base):
    with pytest.raises(error) as caught:
        call(gaussian(20, 3))
    assert isinstance(caught.value, base)
    assert isinstance(caught.value, MikernelsError)


def test_errors_of_other_processes_stay_runtime_errors():
    assert issubclass(RankError, MikernelsError)
    assert issubclass(RankError, RuntimeError)


@pytest.mark.parametrize("method", [m for m in METHODS if m.impl == "torch"], ids="-".join)
@pytest.mark.parametrize("with_y", [False, True])
def test_the_least_workspace_is_the_smallest_budget_that_works(method, with_y):
    x, y = correlated(20, 5).split([2, 3], dim=1)
    y = y if with_y else None
    assert workspace_bytes(x, y, **options(method)).least == smallest_budget(x, y, **options(method))


@pytest.mark.parametrize("estimator", ["grid", "kde", "renyi2", "adaptive"])
def test_workspace_of_shapes_alone(estimator):
    x = torch.empty(4096, 300, device="meta")
    free = workspace_bytes(x, estimator=estimator)
    assert free == workspace_bytes(torch.zeros(4096, 300), estimator=estimator)
    assert free.least < free.used <= 2**30 + x.nbytes
    budget = (free.least + free.used) // 2
    assert free.least < workspace_bytes(x, estimator=estimator, memory_budget=budget).used <= budget
    with pytest.raises(WorkspaceError, match=f"at least {free.least} bytes"):
        workspace_bytes(x, estimator=estimator, memory_budget=free.least - 1)


def test_workspace_counts_standardized_values_in_their_precision():
    x = torch.zeros(64, 40, device="meta")
    single, double = (workspace_bytes(v, transform="standardize") for v in (x, x.double()))
    assert Workspace(*(d - s for s, d in zip(single, double, strict=True))) == (4 * 64 * 40, 4 * 64 * 40)


@pytest.mark.parametrize("make", [torch.empty, lambda *shape, **_: np.full(shape, np.nan, np.float32)])
def test_out_gets_the_matrix_and_is_returned(make):
    x, y = correlated(40, 5).split([3, 2], dim=1)
    for others in (None, y):
        out = make(3, 3 if others is None else 2, dtype=torch.float32)
        assert mutual_information(x, others, out=out, nodes=8) is out
        assert np.array_equal(out, mutual_information(x, others, nodes=8))
    out = make(3, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="made with"):
        null_distribution(40, draws=30).p_value(mutual_information(x, out=out, nodes=8))


def test_out_may_be_a_part_of_a_larger_array_or_a_file(tmp_path):
    x = correlated(40, 5).numpy()
    stored = np.memmap(tmp_path / "mi", np.float32, "w+", shape=(5, 5))
    assert mutual_information(x, out=stored) is stored
    whole = torch.zeros(5, 12)
    mutual_information(x, out=whole[:, 1::2][:, :5])
    for column in (0, 11):
        assert not whole[:, column].any()
    assert np.array_equal(whole[:, 1:11:2], stored)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (torch.empty(3, 2), r"out: expected shape \[3, 3\] in torch.float32 on cpu, got shape \[3, 2\]"),
        (torch.empty(3, 3).double(), r"got shape \[3, 3\] in torch.float64"),
        (torch.empty(3, 3, device="meta"), "in torch.float32 on meta"),
        (np.empty((3, 3), ">f4"), "got a ndarray of strides or byte order that torch does not have"),
        (np.empty((3, 3), np.float32)[::-1], "of strides or byte order"),
        (np.broadcast_to(np.float32(0), (3, 3)), "expected a tensor or a writable NumPy array, got ndarray"),
        ([[0.0] * 3] * 3, "expected a tensor or a writable NumPy array, got list"),
    ],
)
def test_an_out_that_cannot_hold_the_matrix_is_refused_before_the_work(out, words):
    with pytest.raises(ValueError, match=words):
        mutual_information(torch.full((20, 3), float("nan")), out=out)
