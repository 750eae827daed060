"""Feature selection, against plain loops over the matrix and over tables of counts."""

import math
import warnings
from collections import Counter

import pytest
import torch

from mikernels import mutual_information, selection
from mikernels.selection import jmi, mrmr, mrmr_from_matrix

from global_states import default_dtype
from samples import correlated, gaussian


def loop_mrmr(mi, relevance, k):
    """The criterion by the definition, one candidate at a time."""
    chosen = []
    for _ in range(k):
        scores = {
            f: relevance[f] - (sum(mi[f][s] for s in chosen) / len(chosen) if chosen else 0)
            for f in range(len(relevance))
            if f not in chosen
        }
        chosen.append(max(scores, key=lambda f: (round(scores[f], 5), -f)))
    return chosen


def counted(*columns):
    """Entropy in nats of the joint counts of discrete columns, lists of equal length."""
    counts = Counter(zip(*columns, strict=True)).values()
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts)


def loop_jmi(x, y, k):
    """The criterion from counts of three columns at once: I(f, s; y) = H(f, s) + H(y) - H(f, s, y)."""
    columns, y = x.t().tolist(), y.tolist()
    relevance = [counted(f) + counted(y) - counted(f, y) for f in columns]
    chosen = [max(range(len(columns)), key=relevance.__getitem__)]
    scores = [relevance[chosen[0]]]
    while len(chosen) < k:
        joint = {
            f: sum(
                counted(columns[f], columns[s]) + counted(y) - counted(columns[f], columns[s], y)
                for s in chosen
            )
            / len(chosen)
            for f in range(len(columns))
            if f not in chosen
        }
        chosen.append(max(joint, key=joint.get))
        scores.append(joint[chosen[-1]])
    return chosen, scores


def labelled(n_samples=400):
    """Discrete columns `[M, 7]` and a label that the first two determine together but not alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(3, (n_samples, 7), generator=generator)
    y = (x[:, 0] + x[:, 1]) % 3
    x[:, 2] = torch.where(torch.rand(n_samples, generator=generator) < 0.75, x[:, 0], x[:, 2])
    x[:, 3] = torch.where(torch.rand(n_samples, generator=generator) < 0.4, y, x[:, 3])
    return x, y


@pytest.mark.parametrize("target", ["continuous", "label"])
@pytest.mark.parametrize("estimator", ["grid", "kde", "adaptive"])
def test_mrmr_equals_a_loop_over_the_matrix(estimator, target):
    x = correlated(150, 9)
    y = x[:, 3] + x[:, 8] + gaussian(150, 1, seed=7)[:, 0]
    y = y if target == "continuous" else (y > 0).long()
    options = {"estimator": estimator, "calibrate": True}
    mi, relevance = mutual_information(x, **options), mutual_information(x, y, **options)
    found = mrmr(x, y, 6, estimator=estimator)
    assert found.features.tolist() == loop_mrmr(mi.tolist(), relevance[:, 0].tolist(), 6)
    torch.testing.assert_close(found.relevance, relevance[:, 0])
    from_matrix = mrmr_from_matrix(mi, relevance, 6)
    assert from_matrix.features.tolist() == found.features.tolist()
    torch.testing.assert_close(from_matrix.scores, found.scores, rtol=0, atol=1e-5)


def test_jmi_equals_counts_of_three_columns():
    x, y = labelled()
    found = jmi(x, y, 5, calibrate=False)  # plain counts of discrete columns
    features, scores = loop_jmi(x, y, 5)
    assert found.features.tolist() == features
    torch.testing.assert_close(found.scores, torch.tensor(scores), rtol=0, atol=2e-4)


def test_jmi_sees_what_two_columns_tell_together():
    x, y = labelled(2000)
    assert set(jmi(x, y, 3).features.tolist()) >= {0, 1}
    assert jmi(x, y, 3).scores.tolist()[2] > 0.5
    z = gaussian(2000, 4)  # the sign of a product, as in XOR: continuous columns
    label = (z[:, 1] * z[:, 2] > 0).long() * 2 + (z[:, 1] > 0.3)
    assert set(jmi(z, label, 2).features.tolist()) == {1, 2}


def label_by_name(count, n_samples=6000):
    """Columns that tell the class exactly but not its place in the order, and the place but not the class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(count, (n_samples,), generator=generator)
    noise = torch.randn(2, n_samples, generator=generator)
    return torch.stack(
        [torch.randperm(count, generator=generator)[y] + 0.3 * noise[0], y + 2.5 * noise[1]], 1
    ), y


def test_a_label_of_more_classes_than_cells_is_refused():
    """Its classes would be taken as numbers in their order, and the second column as the one that tells most."""
    for count, options in ((16, {}), (17, {"estimator": "adaptive"}), (17, {"nodes": 32})):
        x, y = label_by_name(count)
        assert jmi(x, y, 1, **options).features.tolist() == [0]
    for count, options, message in (
        (
            17,
            {},
            "y: expected a label of at most 16 values, .* got 17; merge some, or pass estimator='adaptive'",
        ),
        (
            60,
            {},
            "y: expected a label whose values have at least 120 samples each .* of 60 that have fewer; merge rare",
        ),
        (60, {"estimator": "adaptive"}, "got [0-9]+ of 60 that have fewer; merge rare values into one"),
        (3, {"transform": "standardize"}, "transform: expected 'rank' for a label of 3 values"),
    ):
        x, y = label_by_name(count)
        with pytest.raises(ValueError, match=message):
            jmi(x, y, 1, **options)
    assert jmi(x, (y > 1).long(), 1, transform="standardize").features.shape == (1,)
    x, y = label_by_name(60)
    rare = torch.where(torch.arange(6000) < 60, 17 + torch.arange(6000) % 3, label_by_name(4)[1])
    assert jmi(x, rare, 1).features.shape == (1,)  # rare classes have a cell together


def test_mrmr_warns_of_codes_of_classes_that_it_takes_as_numbers():
    x, y = label_by_name(60)
    with pytest.warns(UserWarning, match="y: expected a label .* taken as numbers in their order") as caught:
        assert mrmr(x, y, 1).features.tolist() == [1]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mrmr(x, y * 3, 1)  # no codes
        mrmr(x, y + 0.3, 1)
        x, y = label_by_name(16)
        assert mrmr(x, y, 1).features.tolist() == [0]


@pytest.mark.parametrize("method", ["mrmr", "jmi"])
def test_names_of_classes_have_no_order_in_a_pipeline(method):
    pytest.importorskip("sklearn")
    from mikernels.integrations.scikit_learn import MutualInformationSelector

    x, y = label_by_name(17)
    names = [f"class {i:02d}" for i in y.tolist()]
    with pytest.raises(ValueError, match="y: expected a label of at most 16 values"):
        MutualInformationSelector(1, method=method).fit(x.numpy(), names)
    with default_dtype(torch.float64):
        MutualInformationSelector(1, method=method).fit(x.numpy(), [name[:7] for name in names])
    found = MutualInformationSelector(1, method=method, estimator="adaptive").fit(x.numpy(), names)
    assert found.features_.tolist() == [0]


def test_every_step_computes_one_row_from_ranks_made_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        selection, "transformed", lambda *a, **k: calls.append(a[0].shape) or transformed(*a, **k)
    )
    rows = []
    monkeypatch.setattr(selection, "estimate", lambda *a: rows.append(len(a[1])) or estimate(*a))
    mrmr(correlated(64, 20), gaussian(64, 1), 5)
    assert calls == [(64, 20), (64, 1)]
    assert rows == [1] * 5  # the target, and all but the last of the chosen ones


transformed, estimate = selection.transformed, selection.estimate


def test_all_columns_once_and_equal_ones_in_order():
    x = gaussian(64, 1).repeat(1, 4)
    found = mrmr_from_matrix(torch.ones(4, 4).fill_diagonal_(torch.inf), torch.ones(4), 99)
    assert found.features.tolist() == [0, 1, 2, 3]
    assert sorted(mrmr(x, x[:, 0], 4).features.tolist()) == [0, 1, 2, 3]
    assert mrmr(x.numpy(), x[:, 0].numpy(), 1, transform="standardize").features.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mrmr(x, x[:, 0], 0), "k: expected at least 1, got 0"),
        (lambda x: mrmr(x, x, 2), r"y: expected one target, with as many samples as x \(40\)"),
        (lambda x: mrmr(x, x[:30, 0], 2), r"y: expected one target, with as many samples as x \(40\)"),
        (lambda x: mrmr(x, x[:, 0] / 0, 2), "y: expected finite values"),
        (lambda x: jmi(x, x[:, 0], 2), "y: expected a label with at least 9 samples of each value, got 1 of"),
        (lambda x: jmi(x, torch.arange(40) // 32, 2), "y: expected a label with at least 9 .* got 8 of 1"),
        (lambda x: mrmr(x[:, :1], x[:, 1], 1, bandwidth="loo"), "bandwidth: expected 2 variables or more"),
        (lambda x: mrmr_from_matrix(torch.ones(2, 3), torch.ones(3), 1), r"mi: expected shape \[3, 3\]"),
        (lambda x: mrmr_from_matrix(torch.ones(2, 2) / 0, torch.ones(2), 1), "mi: expected finite values"),
        (lambda x: mrmr_from_matrix(torch.ones(2, 2), torch.ones(2, 2), 1), "relevance: expected one value"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(gaussian(40, 3))
