"""Conditional information of Gaussian copulas, against closed forms."""

import math

import pytest
import torch

from mikernels import gaussian_conditional_information

from samples import gaussian


def test_a_common_cause_explains_its_effects():
    """x = z + e and y = z + f, any monotone maps: 1/2 log 4/3 nats together, none given z."""
    z = gaussian(20_000, 1, 1)
    x = torch.cat([z + gaussian(20_000, 2, 2), gaussian(20_000, 1, 3)], dim=1)
    mi = gaussian_conditional_information(x.exp(), z**3)
    assert abs(float(mi[0, 1])) < 3e-4
    assert torch.equal(mi, mi.t())
    assert torch.isinf(mi.diagonal()).all()
    noise = gaussian_conditional_information(x.exp(), gaussian(20_000, 1, 4))
    assert float(noise[0, 1]) == pytest.approx(0.5 * math.log(4 / 3), abs=0.01)


def test_a_common_effect_makes_its_causes_dependent():
    """z = x + y + e: the partial correlation of x and y given z is -1/2."""
    x = gaussian(20_000, 2, 1)
    z = x.sum(1, keepdim=True) + gaussian(20_000, 1, 2)
    mi = gaussian_conditional_information(
        x, torch.cat([z, z, torch.ones_like(z)], dim=1)
    )  # a copy, and a constant
    assert float(mi[0, 1]) == pytest.approx(-0.5 * math.log(1 - 0.25), abs=0.01)


def test_constant_columns_share_nothing_and_bad_input_is_refused():
    x = gaussian(50, 3)
    x[:, 1] = 2.0
    assert (gaussian_conditional_information(x, gaussian(50, 1, 2))[1] == 0).all()
    assert (gaussian_conditional_information(x, x[:, :1].exp())[0] == 0).all()  # determined
    with pytest.raises(ValueError, match=r"given: expected as many samples as in x \(50\), got 40"):
        gaussian_conditional_information(x, x[:40])
    with pytest.raises(ValueError, match="given: expected fewer than 49 variables"):
        gaussian_conditional_information(x, gaussian(50, 49))
    with pytest.raises(ValueError, match="given: expected finite values"):
        gaussian_conditional_information(x, x * math.nan)
