"""Networks from a matrix, against plain loops over pairs and triangles."""

import math
from statistics import fmean, pstdev

import numpy as np
import pandas as pd
import pytest
import torch

from mikernels import mutual_information, networks, pairs_above, top_pairs
from mikernels.networks import aracne, clr, clr_pairs
from mikernels.pairs import Pairs

from samples import correlated, gaussian

REGULATORS = [4, 0, 7, 2]


def matrix(n=11, seed=0):
    """A symmetric matrix `[n, n]` with equal values, zeros and some negative values."""
    values = gaussian(n, n, seed).mul(4).round() / 4 + 1
    return values.triu() + values.triu(1).t()


def rectangle():
    return matrix()[REGULATORS]


def loop_clr(mi, regulators):
    """Scores by the definition, one pair at a time; `regulators[i]` is the column of row i, or None."""
    mi = mi.double().tolist()
    n, k = len(mi), len(mi[0])
    columns = regulators or [None] * n

    def z(value, others):
        spread = pstdev(others) if others else 0.0
        return max(0.0, (value - fmean(others)) / spread) if spread > 1e-9 else 0.0

    scores = torch.zeros(n, k, dtype=torch.float64)
    for i in range(n):
        for j in range(k):
            if columns[i] != j:
                row = [mi[i][b] for b in range(k) if b != columns[i]]
                column = [mi[a][j] for a in range(n) if columns[a] != j]
                scores[i, j] = math.hypot(z(mi[i][j], row), z(mi[i][j], column))
    return scores


def loop_aracne(mi, regulators, tolerance=0.0):
    """The data-processing inequality by the definition, one triangle at a time."""
    kept = mi.clamp(min=0).clone()
    for i, own in enumerate(regulators):
        for k in range(mi.shape[1]):
            for j, between in enumerate(regulators):
                if len({own, between, k}) == 3:
                    bound = min(float(mi[i, between]), float(mi[j, k]))
                    if max(0.0, float(mi[i, k])) < (1 - tolerance) * bound:
                        kept[i, k] = 0
        kept[i, own] = 0
    return kept


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tile", [3, 384])
def test_aracne_equals_a_loop_over_triangles(tolerance, tile, monkeypatch):
    monkeypatch.setattr(networks, "CPU_TILE", tile)
    mi = matrix()
    assert torch.equal(aracne(mi, tolerance=tolerance), loop_aracne(mi, range(11), tolerance))
    mi = rectangle()
    found = aracne(mi, REGULATORS, tolerance=tolerance)
    assert torch.equal(found, loop_aracne(mi, REGULATORS, tolerance))
    assert 0 < int((found > 0).sum()) <= int((mi > 0).sum())


def test_clr_equals_a_loop_over_pairs():
    torch.testing.assert_close(clr(matrix()), loop_clr(matrix(), list(range(11))).float())
    torch.testing.assert_close(clr(rectangle(), REGULATORS), loop_clr(rectangle(), REGULATORS).float())
    other = gaussian(5, 5)  # square, but of two sets of variables
    torch.testing.assert_close(clr(other), loop_clr(other, None).float())
    assert torch.equal(clr(matrix()), clr(matrix()).t())


def as_pairs(mi, regulators=None):
    kept = mi.clamp(min=0).triu(1) if regulators is None else mi.clamp(min=0)
    first, second = kept.nonzero(as_tuple=True)
    return Pairs(first, second, mi[first, second])


@pytest.mark.parametrize("paths", [7, 2**21])
@pytest.mark.parametrize("regulators", [None, REGULATORS], ids=["symmetric", "rectangle"])
def test_pairs_give_what_the_matrix_gives(regulators, paths, monkeypatch):
    monkeypatch.setattr(networks, "PATHS", paths)
    mi = matrix() if regulators is None else rectangle()
    for tolerance in (0.0, 0.2):
        kept = aracne(as_pairs(mi, regulators), regulators, tolerance=tolerance)
        expected = as_pairs(aracne(mi, regulators, tolerance=tolerance), regulators)
        for got, wanted in zip(kept, expected, strict=True):
            assert torch.equal(got, wanted)


def test_pairs_of_samples_whose_matrix_is_never_built():
    x = correlated(200, 12)
    threshold = 0.05
    mi = mutual_information(x)
    kept = aracne(mi.where(mi > threshold, 0))
    found = aracne(pairs_above(x, threshold))
    assert len(found.mi) == int((kept.triu(1) > 0).sum())
    assert torch.equal(kept[found.first, found.second], found.mi)
    assert len(aracne(pairs_above(x, 99.0)).mi) == 0
    assert len(aracne(top_pairs(x, 1)).mi) == 1


def samples_with_ties():
    """Samples of 36 columns: 2 are constant, and 6 come twice, so that pairs have equal scores."""
    x = correlated(30, 36)
    x[:, [8, 20]] = 1.0
    x[:, 25:31] = x[:, :6]
    return x


def sorted_pairs(scores, is_pair):
    """`(score, first, second)` of all pairs, the best first and equal scores by index."""
    first, second = is_pair.nonzero(as_tuple=True)
    listed = zip(scores[first, second].tolist(), first.tolist(), second.tolist(), strict=True)
    return sorted(listed, key=lambda pair: (-pair[0], pair[1:]))


@pytest.mark.parametrize("case", ["symmetric", "regulators", "other variables"])
def test_clr_of_samples_equals_clr_of_their_matrix(case, small_tiles):
    x, y, regulators = samples_with_ties(), None, None
    if case == "regulators":
        regulators = [30, 4, 8, 33, *range(9, 25)]
        x, y = x[:, regulators], x
    elif case == "other variables":
        x, y = x[:, :20], x[:, 20:].square()
    mi = mutual_information(x, y)
    is_pair = torch.ones_like(mi, dtype=torch.bool)
    if case == "symmetric":
        is_pair.triu_(1)
    elif regulators:
        is_pair[range(20), regulators] = False
    expected = sorted_pairs(clr(mi, regulators), is_pair)
    found = clr_pairs(x, y, k=10_000, regulators=regulators)
    assert len(found.mi) == len(expected) == int(is_pair.sum())
    wanted = loop_clr(mi, list(range(36)) if case == "symmetric" else regulators)
    torch.testing.assert_close(found.mi, wanted[found.first, found.second].float())
    torch.testing.assert_close(found.mi, torch.tensor([pair[0] for pair in expected]))
    in_order = list(zip((-found.mi).tolist(), found.first.tolist(), found.second.tolist(), strict=True))
    assert in_order == sorted(in_order)
    assert not found.mi[-1]  # constant variables stand out nowhere

    for k in (1, 57):
        few = clr_pairs(x, y, k=k, regulators=regulators)
        assert all(torch.equal(got, all_[:k]) for got, all_ in zip(few, found, strict=True))
    above = clr_pairs(x, y, threshold=float(found.mi[57]), regulators=regulators)
    number = int((found.mi > found.mi[57]).sum())
    assert 0 < number <= 57
    assert all(torch.equal(got, all_[:number]) for got, all_ in zip(above, found, strict=True))
    assert len(clr_pairs(x, y, threshold=-1, regulators=regulators).mi) == len(expected)


def test_aracne_takes_the_pairs_of_clr():
    x = correlated(100, 12)
    scores = clr(mutual_information(x))
    for k in (5, 66):
        pairs = clr_pairs(x, k=k)
        kept = aracne(pairs)
        listed = torch.zeros(12, 12)
        listed[pairs.first, pairs.second] = pairs.mi
        direct = aracne(listed + listed.t())
        assert torch.equal(
            direct.triu(1).nonzero(), torch.stack(kept[:2], 1)[kept.first.mul(12).add(kept.second).argsort()]
        )
    assert float((pairs.mi - scores[pairs.first, pairs.second]).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_pairs_of_any_arrays_come_back_in_their_kind(kind):
    pairs = Pairs(kind([0, 1, 0]), kind([1, 2, 2]), kind([3.0, 2.0, 1.0]))
    kept = aracne(pairs)
    assert all(type(got) is type(given) for got, given in zip(kept, pairs, strict=True))
    assert [t.tolist() for t in kept] == [[0, 1], [1, 2], [3.0, 2.0]]


@pytest.mark.parametrize(
    ("dtype", "names"),
    [("int32", [70_000, 80_000, 99_999]), ("int16", [0, 300, 999]), ("uint8", [0, 100, 255])],
)
def test_numbers_of_variables_may_have_any_width(dtype, names):
    """The weakest pair of the one triangle is removed."""
    pairs = Pairs(
        np.array([*names[:2], names[0]], dtype),
        np.array([*names[1:], names[2]], dtype),
        np.array([3.0, 2.0, 1.0]),
    )
    for regulators in (None, range(names[-1] + 1)):
        kept = aracne(pairs, regulators)
        assert [t.tolist() for t in kept] == [names[:2], names[1:], [3.0, 2.0]]
        assert kept.first.dtype == dtype


def test_a_table_gives_its_names_to_the_scores():
    table = pd.DataFrame(correlated(40, 5).numpy(), columns=list("abcde"))
    found = clr_pairs(table, k=3)
    numbers = clr_pairs(table.to_numpy(), k=3)
    assert [f"{i}{j}" for i, j in zip(found["first"], found["second"], strict=True)] == [
        "abcde"[i] + "abcde"[j] for i, j in zip(numbers.first, numbers.second, strict=True)
    ]
    assert np.array_equal(found["mi"], numbers.mi)


def test_a_chain_loses_its_indirect_link_only():
    z = gaussian(2000, 3)
    x = torch.stack([z[:, 0], z[:, 0] + 0.7 * z[:, 1], z[:, 0] + 0.7 * z[:, 1] + 0.7 * z[:, 2]], 1)
    kept = aracne(mutual_information(x))
    assert kept[0, 2] == kept[2, 0] == 0
    assert min(kept[0, 1], kept[1, 2]) > 0.3
    target = mutual_information(x[:, [0, 1]], x)  # two regulators
    assert (aracne(target, range(2)) > 0).tolist() == [[False, True, False], [True, False, True]]


def test_clr_does_not_depend_on_scale_and_offset():
    torch.testing.assert_close(clr(4 * matrix() + 1), clr(matrix()))
    for mi, regulators in ((matrix(), None), (rectangle(), REGULATORS), (gaussian(5, 4), None)):
        mi = mi.double()
        expected = loop_clr(mi, list(range(11)) if len(mi) == 11 else regulators)
        for other in (mi + 1e6, mi - 1e6, mi * 1e160, mi * 1e-300):
            torch.testing.assert_close(clr(other, regulators), expected, rtol=1e-7, atol=1e-7)
    assert (clr(torch.full((5, 4), 0.1).double() + 1e6) == 0).all()


def test_the_input_is_left_alone_and_constants_score_nothing():
    mi = torch.ones(4, 4)
    assert (clr(mi) == 0).all()
    mi.fill_diagonal_(torch.inf)
    before = mi.clone()
    assert torch.equal(aracne(mi), torch.ones(4, 4).fill_diagonal_(0))
    assert torch.equal(mi, before)
    assert clr(torch.ones(1, 1)).shape == aracne(torch.ones(1, 1)).shape == (1, 1)
    assert clr(matrix().double()).dtype == torch.float64
    assert clr(matrix().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aracne(torch.ones(3, 4)), "mi: expected a symmetric matrix, got one of shape"),
        (lambda: aracne(torch.tensor([[0.0, torch.nan], [torch.nan, 0.0]])), "mi: expected finite values"),
        (lambda: clr(torch.tensor([[0.0, torch.inf], [torch.inf, 0.0]])), "mi: expected finite values"),
        (lambda: clr(torch.ones(3)), r"mi: expected a matrix \[regulators, targets\], got shape \[3\]"),
        (lambda: aracne(matrix(), tolerance=1.5), "tolerance: expected a number from 0 to 1, got 1.5"),
        (lambda: aracne(rectangle(), [0, 1]), "regulators: expected the column, below 11, of each of the 4"),
        (lambda: aracne(rectangle(), [0, 1, 2, 11]), "regulators: expected the column, below 11"),
        (lambda: aracne(rectangle(), [0, 1, 2, 2]), "regulators: expected different column numbers"),
        (lambda: clr(rectangle(), [0.0, 1, 2, 3]), "regulators: expected column numbers, got torch.float32"),
        (lambda: clr_pairs(gaussian(20, 3)), "k, threshold: expected one of them, got k=None and"),
        (
            lambda: clr_pairs(gaussian(20, 3), k=1, threshold=1.0),
            "k, threshold: expected one of them, got k=1",
        ),
        (lambda: clr_pairs(gaussian(20, 3), k=0), "k: expected at least 1, got 0"),
        (lambda: clr_pairs(gaussian(20, 3), threshold="2"), "threshold: expected a number of standard dev"),
        (
            lambda: clr_pairs(gaussian(20, 3), k=1, regulators=[0, 1, 2]),
            "regulators: expected None without y",
        ),
        (lambda: clr_pairs(gaussian(20, 3), gaussian(20, 2), k=1, regulators=[0, 1, 2]), "column, below 2"),
        (lambda: aracne(Pairs(*torch.ones(3, 2))), "first, second: expected numbers of variables, integers"),
        (
            lambda: aracne(as_pairs(rectangle(), REGULATORS), [0]),
            "regulators: expected one for each variable",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_results_keep_the_kind_and_the_labels_of_the_matrix():
    table = pd.DataFrame(
        [[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]], index=list("abc"), columns=list("abc")
    )
    direct = aracne(table)
    pd.testing.assert_frame_equal(direct, table.replace(1.0, 0.0))  # a and c only through b
    assert clr(table).columns.tolist() == clr(table).index.tolist() == ["a", "b", "c"]
    assert isinstance(aracne(table.to_numpy()), np.ndarray)
