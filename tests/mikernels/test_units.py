"""Bits and the information correlation against their closed forms."""

import math

import torch

from mikernels import bits, information_correlation


def test_gaussian_information_is_its_correlation():
    rho = torch.tensor([0.0, 1e-4, 0.3, 0.9, 0.999], dtype=torch.float64)
    mi = -0.5 * torch.log1p(-rho.square())
    torch.testing.assert_close(information_correlation(mi), rho, rtol=1e-9, atol=1e-12)


def test_limits():
    mi = torch.tensor([[-0.01, 0.0], [math.inf, 20.0]])
    assert information_correlation(mi).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_a_bit_is_the_logarithm_of_two():
    assert bits(torch.tensor([math.log(2), 0.0])).tolist() == [1.0, 0.0]
