"""Thresholds in words: `null:q`."""

import pytest
import torch

from mikernels import mutual_information, null_distribution
from pruning.threshold import null_level, null_threshold


def activations(n_tokens, n_neurons=8):
    return torch.randn(n_tokens, n_neurons, generator=torch.Generator().manual_seed(0))


def test_named_threshold_is_a_quantile_of_the_null():
    expected = null_distribution(200, estimator="grid", draws=20_000).quantile(0.99)
    assert null_threshold("null:0.99", activations(200), estimator="grid", nodes=16) == expected


def test_strict_thresholds_draw_more():
    assert len(null_distribution(50, estimator="grid", nodes=8, draws=40_000).values) >= 40_000
    strict = null_threshold("null:0.9997", activations(50), estimator="grid", nodes=8)
    assert strict > null_threshold("null:0.99", activations(50), estimator="grid", nodes=8)


def test_neurons_behind_a_relu_have_a_null_of_their_own():
    """Independent ones exceed it as often as they should, and that of continuous neurons far more often."""
    x = activations(400, 60).relu()
    first, second = torch.triu_indices(60, 60, offset=1)
    mi = mutual_information(x)[first, second]
    threshold = null_threshold("null:0.95", x, estimator="grid", nodes=16)
    assert float((mi > threshold).double().mean()) == pytest.approx(0.05, abs=0.02)
    continuous = null_distribution(400, draws=20_000).quantile(0.95)
    assert float((mi > continuous).double().mean()) > 0.2


@pytest.mark.parametrize("threshold", ["null", "null:", "null:1", "null:0", "null:nan", "0.5", "median:0.5"])
def test_other_forms_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold: expected nats or 'null:q' with q between 0 and 1"):
        null_level(threshold)
