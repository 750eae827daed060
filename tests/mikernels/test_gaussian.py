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


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_binary_variable_is_removed_whole(dtype):
    """Columns that differ by groups, and are independent within each."""
    group = (torch.arange(4000) % 2).to(dtype)
    x = torch.cat([3 * group[:, None] + gaussian(4000, 2), group[:, None]], dim=1)
    assert float(gaussian_conditional_information(x, gaussian(4000, 1, 1))[0, 1]) > 0.2
    mi = gaussian_conditional_information(x, group)
    # Twice the information of independent normal variables times M is chi-squared with one degree of freedom.
    assert float(mi[0, 1]) < 10.8 / (2 * 4000)
    assert (mi[2] == 0).all()


def test_tied_scores_do_not_depend_on_the_order_of_samples():
    x, z = gaussian(300, 4).relu(), gaussian(300, 2, 1).relu()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    mi = gaussian_conditional_information(x, z)
    torch.testing.assert_close(gaussian_conditional_information(x[order], z[order]), mi)
    stats = pytest.importorskip("scipy.stats")
    a, b = (
        torch.tensor([[float(stats.norm.ppf((rank - 0.5) / 300)) for rank in range(1, 301)]] * v.shape[1])
        for v in (x, z)
    )
    for values, scores in ((x, a), (z, b)):
        for column, row in zip(values.t(), scores, strict=True):
            row.copy_(row[column.argsort().argsort()])
            for value in column.unique():
                row[column == value] = row[column == value].mean()
    a, b = (v - v.mean(1, keepdim=True) for v in (a.double(), b.double()))
    residual = a - a @ torch.linalg.pinv(b) @ b
    rho = torch.corrcoef(residual)[0, 1]
    assert float(mi[0, 1]) == pytest.approx(-0.5 * math.log(1 - float(rho) ** 2), rel=1e-3)


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
