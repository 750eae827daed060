"""Processes of a group compute together what one would alone."""

import pytest
import torch

from mikernels import mutual_information
from mikernels.ranks import RankError, Ranks

import group_work
from processes import processes


@pytest.fixture(scope="module")
def group():
    with processes(3) as started:
        yield started


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("within", {"memory_budget": 300_000}),  # several panels
        ("between", {}),
        ("ties", {"estimator": "adaptive", "nodes": 16}),
        ("within", {"estimator": "kde", "precision": "fp32"}),
        ("two variables", {}),  # fewer blocks than processes
        ("within", {"impl": "reference"}),
    ],
)
def test_every_process_gets_the_bits_of_one(group, name, options, count):
    x, y = group_work.inputs(name)
    expected = mutual_information(x, y, **options)
    answers = group.run(count, group_work.share_matrix, name, options)
    assert all(torch.equal(got, expected) for got, _ in answers)
    assert sum(blocks > 0 for _, blocks in answers) == min(count, sum(blocks for _, blocks in answers))


@pytest.mark.parametrize("name", ["within", "between", "two variables"])
@pytest.mark.parametrize("which", ["top", "above"])
def test_every_process_gets_the_pairs_of_one(group, name, which):
    expected = group_work.share_pairs(None, name, which)
    assert len(expected.mi)
    for got in group.run(3, group_work.share_pairs, name, which):
        assert all(torch.equal(values, other) for values, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["within", "between", "two variables"])
def test_every_process_gets_the_scores_of_one(group, name):
    expected = group_work.share_pairs(None, name, "clr")
    for got in group.run(3, group_work.share_pairs, name, "clr"):
        assert all(torch.equal(*both) for both in zip(got[:2], expected[:2], strict=True))
        torch.testing.assert_close(got.mi, expected.mi)  # sums of blocks in another order


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("samples", "x: expected the same on all processes, got .* on rank 0 and .* on rank 1"),
        ("shape", "x: expected the same on all processes"),
        ("options", "bandwidth: expected the same on all processes"),
        ("nan", "x: expected"),
        ("option", "nodes: expected an integer from 2 to 256, got 1"),
    ],
)
def test_other_samples_or_options_are_an_error_on_all(group, what, message):
    for error in group.run(2, group_work.with_others, what):
        assert isinstance(error, (ValueError, RankError))
        with pytest.raises(type(error), match=message):
            raise error


def test_a_group_is_a_group_that_this_process_is_in():
    with pytest.raises(
        TypeError, match=r"process_group: expected a group of torch\.distributed or None, got int"
    ):
        mutual_information(torch.randn(32, 3), process_group=1)


def test_what_is_exchanged(group):
    expected = torch.cat([torch.full((2 * rank, 3), rank) for rank in range(3)]).bfloat16()
    assert all(torch.equal(rows, expected) for rows in group.run(3, group_work.gather_rows))
    for index, (total, copied, first, number, least) in enumerate(group.run(3, group_work.exchange)):
        assert torch.equal(total, torch.arange(6.0).view(2, 3).t() * 6)
        assert copied.tolist() == [0.0, 0.0]
        assert first == {"rank": 0}
        assert number == 3 * 2**40 + 3
        assert least == [3, 7], index


def test_one_process_alone_exchanges_nothing():
    ranks, values = Ranks(), torch.arange(3.0)
    ranks.add(values)
    ranks.copy_first(values)
    assert values.tolist() == [0, 1, 2]
    assert ranks.rows(values) is values
    assert ranks.share(values) is values
    with pytest.raises(KeyError), ranks.together():
        raise KeyError


def test_an_error_that_is_raised_again_is_told_once(group):
    """Else the process that failed would wait for the others, which know and have left."""
    for index, error in enumerate(group.run(3, group_work.fail_within)):
        assert isinstance(error, ValueError if index == 1 else RankError)
        assert "broken" in str(error)
    assert group.run(3, group_work.gather_rows)


@pytest.mark.parametrize("where", ["first", "second"])
def test_an_error_of_one_process_is_raised_on_all(group, where):
    answers = group.run(3, group_work.fail_alone, where)
    failed = 0 if where == "first" else 1
    for index, error in enumerate(answers):
        assert isinstance(error, KeyError if index == failed else RankError)
        assert index == failed or str(error) == f"rank {failed} of 3: 'broken'"


def test_the_end_of_one_process_ends_the_wait_of_the_others():
    with processes(3) as started:
        first, second, third = started.run(3, group_work.end_alone)
    assert second is None
    for error in (first, third):
        assert isinstance(error, RankError)
        assert str(error).startswith("process_group: expected an answer of all 3 processes, got an error")
