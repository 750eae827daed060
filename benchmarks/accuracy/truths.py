"""Mutual information of known distributions in nats: closed forms, and float64 quadrature for the rest."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
LogDensity = Callable[[Tensor, Tensor], Tensor]
POINTS = 1201  # of a quadrature along each axis
Pieces = Sequence[tuple[float, float, bool]]
"""Of a normal variable: from, to, and whether all values in between become one."""


def gaussian(rho: float) -> float:
    """`-1/2 log(1 - rho^2)`. T. M. Cover, J. A. Thomas, Elements of Information Theory, 2006, eq. 8.56."""
    return -0.5 * math.log1p(-(rho**2))


def student_t(rho: float, nu: float) -> float:
    """That of the Gaussian plus the contribution of the common scale, `2 h_1(nu) - h_2(nu)` at unit scale.

    Source: R. B. Arellano-Valle, J. E. Contreras-Reyes, M. G. Genton, Shannon entropy and mutual information
    for multivariate skew-elliptical distributions, Scand. J. Stat. 40 (2013),
    DOI 10.1111/j.1467-9469.2011.00774.x.
    """

    def entropy(d: int) -> float:
        half, joint = nu / 2, (nu + d) / 2
        constant = d / 2 * math.log(nu * math.pi) + math.lgamma(half) - math.lgamma(joint)
        return constant + joint * (digamma(joint) - digamma(half))

    return gaussian(rho) + 2 * entropy(1) - entropy(2)


def additive_uniform(width: float) -> float:
    """X uniform on [0, 1] and X + U, U uniform on [-width, width]: `h(trapezoid) - log(2 width)`."""
    return width - math.log(2 * width) if width <= 0.5 else 1 / (4 * width)


def disc() -> float:
    """The coordinates of a uniform point on a disc: twice a semicircle's entropy, `log pi - 1/2`, minus `log pi`."""
    return math.log(math.pi) - 1


def clayton(theta: float) -> float:
    """`log(1 + theta) - theta / (1 + theta)`, as for the bivariate Pareto with shape 1 / theta.

    Source: G. A. Darbellay, I. Vajda, Entropy expressions for multivariate continuous distributions,
    IEEE Trans. Inf. Theory 46 (2000), DOI 10.1109/18.825848.
    """
    return math.log1p(theta) - theta / (1 + theta)


def gamma_exponential(shape: float) -> float:
    """X ~ Gamma(shape) and Y ~ Exp(rate X): `psi(shape + 1) - log(shape)`. Darbellay and Vajda as above."""
    return digamma(shape + 1) - math.log(shape)


def gamma_sum(a: float, b: float) -> float:
    """X ~ Gamma(a) and X + Gamma(b): the entropy of Gamma(a + b) minus that of Gamma(b)."""

    def entropy(k: float) -> float:
        return k + math.lgamma(k) + (1 - k) * digamma(k)

    return entropy(a + b) - entropy(b)


def digamma(value: float) -> float:
    return float(torch.special.digamma(torch.tensor(value, dtype=torch.float64)))


def normal_noise(mean: Function, scale: Function, points: int = 4001) -> float:
    """X ~ N(0, 1) and Y = mean(X) + scale(X) Z by quadrature: `h(Y) - 1/2 log(2 pi e) - E log scale(X)`.

    The trapezoidal rule over x in [-8.5, 8.5] and over y = sinh(t), which covers far tails with few points.
    """
    x = torch.linspace(-8.5, 8.5, points, dtype=torch.float64)
    weight = torch.exp(-0.5 * x.square()) * ((x[1] - x[0]) / math.sqrt(2 * math.pi))
    center, width = mean(x), scale(x).expand_as(x)
    low, high = float((center - 8.5 * width).min()), float((center + 8.5 * width).max())
    t = torch.linspace(math.asinh(low), math.asinh(high), points, dtype=torch.float64)
    step = t[1] - t[0]
    entropy = 0.0
    for chunk in t.split(256):
        z = (chunk.sinh()[:, None] - center) / width
        density = torch.exp(-0.5 * z.square()) @ (weight / width) / math.sqrt(2 * math.pi)
        entropy -= float(torch.special.xlogy(density, density) @ chunk.cosh() * step)
    return entropy - 0.5 * math.log(2 * math.pi * math.e) - float(weight @ width.log())


def density(log_density: LogDensity, reach: float, points: int = POINTS) -> float:
    """A smooth joint density that vanishes at +-reach, by the trapezoidal rule; it need not be normalized."""
    x = torch.linspace(-reach, reach, points, dtype=torch.float64)
    joint = log_density(x[:, None], x[None, :]).exp()
    joint /= joint.sum()
    ratio = joint / (joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True))
    return float(torch.special.xlogy(joint, ratio.clamp_min(1e-300)).sum())


def copula(log_density: LogDensity, points: int = POINTS) -> float:
    """A copula with log density as a function of (log u, log v), integrated over the normal scores of u and v."""

    def of_scores(x: Tensor, y: Tensor) -> Tensor:
        log_u, log_v = torch.special.log_ndtr(x), torch.special.log_ndtr(y)
        return log_density(log_u, log_v) - 0.5 * (x.square() + y.square())

    return density(of_scores, 7.5, points)


def gumbel(theta: float, points: int = POINTS) -> float:
    def log_density(log_u: Tensor, log_v: Tensor) -> Tensor:
        a, b = -log_u, -log_v
        log_sum = torch.logaddexp(theta * a.log(), theta * b.log())
        t = (log_sum / theta).exp()
        rest = (2 / theta - 2) * log_sum + torch.log1p((theta - 1) / t)
        return a + b - t + (theta - 1) * (a.log() + b.log()) + rest

    return copula(log_density, points)


def frank(theta: float, points: int = POINTS) -> float:
    def log_density(log_u: Tensor, log_v: Tensor) -> Tensor:
        u, v = log_u.exp(), log_v.exp()
        total = -math.expm1(-theta)
        denominator = total - torch.expm1(-theta * u) * torch.expm1(-theta * v)
        return math.log(theta * total) - theta * (u + v) - 2 * denominator.log()

    return copula(log_density, points)


def fgm(theta: float, points: int = POINTS) -> float:
    """Farlie-Gumbel-Morgenstern copula, with density `1 + theta (1 - 2 u) (1 - 2 v)`."""

    def log_density(log_u: Tensor, log_v: Tensor) -> Tensor:
        return torch.log1p(theta * (1 - 2 * log_u.exp()) * (1 - 2 * log_v.exp()))

    return copula(log_density, points)


def ring(noise: float, points: int = POINTS) -> float:
    """A point on the unit circle plus normal noise: the radius has a Rice distribution."""

    def log_density(x: Tensor, y: Tensor) -> Tensor:
        radius = torch.hypot(x, y)
        bessel = torch.special.i0e(radius / noise**2).log()
        return bessel - (radius - 1).square() / (2 * noise**2)

    return density(log_density, 1 + 8 * noise, points)


def mixture(blobs: tuple[tuple[float, float, float], ...], scale: float, points: int = POINTS) -> float:
    """An equal mixture of Gaussians given by (mean x, mean y, correlation), all with standard deviation `scale`."""

    def log_density(x: Tensor, y: Tensor) -> Tensor:
        logs = []
        for mean_x, mean_y, rho in blobs:
            a, b = (x - mean_x) / scale, (y - mean_y) / scale
            square = (a.square() - 2 * rho * a * b + b.square()) / (1 - rho**2)
            logs.append(-0.5 * square - 0.5 * math.log1p(-(rho**2)))
        return torch.stack(torch.broadcast_tensors(*logs)).logsumexp(0)

    return density(log_density, 3.5 + 7.5 * scale, points)


def entropy(shares: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def shared_mask(kept: float) -> float:
    """Two variables that are 0 in the same samples, and otherwise independent: the entropy of the mask."""
    return entropy([kept, 1 - kept])


def dropped(rho: float, kept: float) -> float:
    """A Gaussian pair with the first set to 0 at random: what is kept shares the information of the Gaussians."""
    return kept * gaussian(rho)


def channel(levels: int, error: float) -> float:
    """Uniform symbols that an error replaces by one of the others.

    Source: T. M. Cover, J. A. Thomas, Elements of Information Theory, 2006, section 7.2.
    """
    return math.log(levels) - entropy([error, 1 - error]) - error * math.log(levels - 1)


def poisson_sum(a: float, b: float) -> float:
    """X ~ Poisson(a) and X + Poisson(b): the entropy of Poisson(a + b) minus that of Poisson(b)."""

    def of_poisson(rate: float) -> float:
        return entropy([math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(150)])

    return of_poisson(a + b) - of_poisson(b)


def labels(means: Sequence[float], points: int = 4001) -> float:
    """A uniform label and a normal variable around its mean: the entropy of the mixture minus that of a normal one."""
    y = torch.linspace(min(means) - 9, max(means) + 9, points, dtype=torch.float64)
    normals = torch.exp(-0.5 * (y - torch.tensor(means, dtype=torch.float64)[:, None]).square())
    density = normals.mean(0) / math.sqrt(2 * math.pi)
    of_mixture = -float(torch.special.xlogy(density, density).sum() * (y[1] - y[0]))
    return of_mixture - 0.5 * math.log(2 * math.pi * math.e)


def in_pieces(rho: float, x: Pieces, y: Pieces, points: int = 120) -> float:
    """A Gaussian pair of which some ranges are single values, by Gauss and Legendre's rule.

    A pair of such ranges is a cell of a table; a range of one variable and the values of the other have a conditional
    probability; pairs of values have their density.
    """

    def nodes(low: float, high: float) -> tuple[Tensor, Tensor]:
        place, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(points))
        low, high = max(low, -9.0), min(high, 9.0)
        return (low + high) / 2 + (high - low) / 2 * place, (high - low) / 2 * weight

    def share(piece: tuple[float, float, bool], given: Tensor | None = None) -> Tensor:
        """Probability of a piece, or of one given values of the other variable."""
        bounds = torch.tensor(piece[:2], dtype=torch.float64)
        if given is not None:
            bounds = (bounds[:, None] - rho * given) / math.sqrt(1 - rho**2)
        # Beyond 0 take the other tail. erfc is exact in tails, where ndtr is 0.
        low, high = torch.where(bounds[0] > 0, -bounds.flip(0), bounds)
        return (torch.erfc(-high / math.sqrt(2)) - torch.erfc(-low / math.sqrt(2))) / 2

    def ranges(values: Pieces, others: Pieces) -> float:
        """All pairs of a range of `others` and values of the first."""
        total = 0.0
        for low, high, _ in (piece for piece in values if not piece[2]):
            v, weight = nodes(low, high)
            weight = weight * torch.exp(-0.5 * v.square()) / math.sqrt(2 * math.pi)
            for other in (piece for piece in others if piece[2]):
                p = share(other, v)
                total += float(weight @ torch.special.xlogy(p, p / share(other)))
        return total

    total = ranges(x, y) + ranges(y, x)
    for b in y:
        v, weight = nodes(*b[:2])
        weight = weight * torch.exp(-0.5 * v.square()) / math.sqrt(2 * math.pi)
        for a in x:
            if a[2] and b[2]:
                p = float(weight @ share(a, v))
                total += p * math.log(p / float(share(a) * share(b))) if p > 0 else 0.0
            elif not a[2] and not b[2]:
                u, weight_x = nodes(*a[:2])
                square = (u[:, None].square() - 2 * rho * u[:, None] * v + v.square()) / (1 - rho**2)
                log_joint = -0.5 * square - 0.5 * math.log1p(-(rho**2))
                log_product = -0.5 * (u[:, None].square() + v.square())
                density = log_joint.exp() / (2 * math.pi)
                total += float(weight_x @ (density * (log_joint - log_product)) @ nodes(*b[:2])[1])
    return total


def sawtooth(width: float) -> float:
    """A phase and the same plus uniform noise, modulo 1: `-log(2 width)`."""
    return -math.log(2 * width)


def checkerboard() -> float:
    return math.log(2)
