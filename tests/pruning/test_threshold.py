"""Thresholds in words: `null:q`."""

import pytest

from mikernels import null_distribution
from pruning.threshold import null_level, null_threshold


def test_named_threshold_is_a_quantile_of_the_null():
    expected = null_distribution(200, estimator="grid", draws=20_000).quantile(0.99)
    assert null_threshold("null:0.99", 200, estimator="grid", nodes=16) == expected


def test_strict_thresholds_draw_more():
    assert len(null_distribution(50, estimator="grid", nodes=8, draws=40_000).values) >= 40_000
    strict = null_threshold("null:0.9997", 50, estimator="grid", nodes=8)
    assert strict > null_threshold("null:0.99", 50, estimator="grid", nodes=8)


@pytest.mark.parametrize("threshold", ["null", "null:", "null:1", "null:0", "null:nan", "0.5", "median:0.5"])
def test_other_forms_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold: expected nats or 'null:q' with q between 0 and 1"):
        null_level(threshold)
