"""Mutual information by other packages, as the benchmark of speed runs them."""

import math

import pytest
import torch

from benchmarks.speed.cases import Case
from benchmarks.speed.variants import VARIANTS


@pytest.mark.parametrize("name", [name for name, v in VARIANTS.items() if v.package not in (None, "scipy")])
def test_peers_find_the_dependent_pair_and_agree_on_nats(name):
    variant = VARIANTS[name]
    assert variant.missing() is None
    case = Case(N=3, M=500, precision="fp32", nodes=10)
    x = torch.randn(case.M, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0.6 * x[:, 0] + 0.8 * x[:, 2]  # 0.22 nats
    mi = variant.call(x, case)()
    assert mi.shape == (3, 3)
    assert float(mi[0, 2]) == pytest.approx(-0.5 * math.log(1 - 0.36), abs=0.1)
    assert max(float(mi[0, 1]), float(mi[1, 2])) < 0.1
