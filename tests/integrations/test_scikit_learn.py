"""The selector and the matrix in scikit-learn itself."""

import math

import numpy as np
import pytest
import torch

from mikernels import mutual_information

pytest.importorskip("sklearn")

from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.feature_selection import mutual_info_regression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from mikernels.integrations.scikit_learn import MutualInformationSelector, mutual_info_matrix


def test_the_selector_passes_every_check_of_scikit_learn():
    results = check_estimator(MutualInformationSelector(), on_fail="raise", on_skip=None)
    assert len(results) > 40
    skipped = {r["check_name"] for r in results if r["status"] != "passed"}
    assert skipped <= {"check_array_api_input"}, skipped  # needs the environment variable SCIPY_ARRAY_API


def test_the_matrix_agrees_with_mutual_info_regression():
    rho = np.array([0.0, 0.3, 0.6, 0.9])  # with the last column: 0 to 0.83 nats
    noise = np.random.default_rng(0).normal(size=(2000, 5))
    x = noise[:, :4] * np.sqrt(1 - rho**2) + noise[:, 4:] * rho
    theirs = mutual_info_regression(x, noise[:, 4], random_state=0)
    ours = mutual_info_matrix(x, noise[:, 4])
    assert ours.shape == (4, 1)
    assert ours.dtype == np.float32
    assert np.abs(ours[:, 0] - theirs).max() < 0.1
    assert np.abs(ours[:, 0] + np.log(1 - rho**2) / 2).max() < 0.05  # the closed form
    square = mutual_info_matrix(x)
    assert square.shape == (4, 4)
    assert square.min() >= 0
    bare = mutual_information(torch.from_numpy(x), estimator="adaptive").clamp(min=0)
    assert np.array_equal(square, bare.numpy())


def test_the_selector_works_in_a_pipeline_and_a_search():
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    pipeline = make_pipeline(StandardScaler(), MutualInformationSelector(3), LogisticRegression())
    search = GridSearchCV(pipeline, {"mutualinformationselector__method": ["mrmr", "jmi"]}, cv=3)
    assert search.fit(x, y).best_score_ > 0.9
    chosen = MutualInformationSelector(3).set_output(transform="pandas").fit(x, y)
    assert list(chosen.transform(x)) == [name for name in x if name in x.columns[chosen.features_]]
    assert chosen.relevance_.shape == (30,)
    assert chosen.features_[0] == chosen.relevance_.argmax()


def test_labels_may_be_names_and_the_informative_columns_are_found():
    x, y = make_classification(600, 12, n_informative=3, n_redundant=0, shuffle=False, random_state=0)
    names = np.array(["no", "yes"])[y]
    found = MutualInformationSelector(3, method="jmi").fit(x, names)
    assert len(set(found.features_) & {0, 1, 2}) >= 2
    assert list(MutualInformationSelector(3, method="jmi").fit(x, y).features_) == list(found.features_)
    assert found.relevance_.max() < math.log(2)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (MutualInformationSelector(method="best"), "method: expected one of 'mrmr', 'jmi', got 'best'"),
        (MutualInformationSelector(2.5), "n_features_to_select: expected an integer or None, got 2.5"),
        (MutualInformationSelector(estimator="ksg"), "estimator: expected one of"),
        (
            MutualInformationSelector(method="jmi"),
            "y: expected a label with at least 9 samples of each value",
        ),
    ],
)
def test_bad_settings_are_named(selector, message):
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(ValueError, match=message):
        selector.fit(x, x[:, 0])


@pytest.mark.parametrize(
    "call", [mutual_info_matrix, lambda x: MutualInformationSelector().fit(x, np.arange(200) % 2)]
)
def test_integers_that_float64_merges_are_refused(call):
    x = np.stack([np.arange(200), np.arange(200)], 1) + 2**60
    assert len(np.unique(x.astype(float))) < 200
    with pytest.raises(ValueError, match=r"2\^53"):
        call(x)
