"""Pairs of variables with known mutual information, as data.

Both halves contain every family of continuous variables with different members: `tuning` cases may be used while an
estimator is developed, `reported` cases only to evaluate it. Tied, discrete and rapid cases are all `reported`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmarks.accuracy import truths
from benchmarks.accuracy.truths import Function, Pieces

Half = Literal["tuning", "reported"]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A joint distribution of two variables."""

    name: str  # unique, as it also seeds the draws
    family: str  # the kind of dependence
    half: Half
    draw: Callable[[Generator, int], Pair]  # n independent samples, two float64 tensors [n]
    truth: Callable[[], float]  # mutual information in nats

    @cached_property
    def mi(self) -> float:
        """Mutual information in nats."""
        return self.truth()


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(generator: Generator, n: int) -> Tensor:
    """Uniform on (0, 1), ends excluded."""
    return torch.rand(n, generator=generator, dtype=torch.float64).clamp_(min=1e-300)


def gamma(generator: Generator, n: int, shape: float) -> Tensor:
    """Gamma with a shape that is a multiple of 1/2: half the sum of squares of normals."""
    return normal(generator, round(2 * shape), n).square().sum(0) / 2


def draw_gaussian(generator: Generator, n: int, *, rho: float) -> Pair:
    x, z = normal(generator, 2, n)
    return x, rho * x + math.sqrt(1 - rho**2) * z


def draw_mapped(generator: Generator, n: int, *, rho: float, left: Function, right: Function) -> Pair:
    x, y = draw_gaussian(generator, n, rho=rho)
    return left(x), right(y)


def draw_student(generator: Generator, n: int, *, rho: float, nu: int) -> Pair:
    x, y = draw_gaussian(generator, n, rho=rho)
    scale = (2 * gamma(generator, n, nu / 2) / nu).sqrt()
    return x / scale, y / scale


def draw_additive_uniform(generator: Generator, n: int, *, width: float) -> Pair:
    x = uniform(generator, n)
    return x, x + width * (2 * uniform(generator, n) - 1)


def draw_normal_noise(generator: Generator, n: int, *, mean: Function, scale: Function) -> Pair:
    x, z = normal(generator, 2, n)
    return x, mean(x) + scale(x) * z


def draw_mixture(
    generator: Generator, n: int, *, blobs: tuple[tuple[float, float, float], ...], scale: float
) -> Pair:
    which = torch.randint(len(blobs), (n,), generator=generator)
    mean_x, mean_y, rho = torch.tensor(blobs, dtype=torch.float64)[which].T
    x, z = normal(generator, 2, n)
    return mean_x + scale * x, mean_y + scale * (rho * x + (1 - rho.square()).sqrt() * z)


def draw_ring(generator: Generator, n: int, *, noise: float) -> Pair:
    angle = 2 * math.pi * uniform(generator, n)
    x, y = normal(generator, 2, n)
    return angle.cos() + noise * x, angle.sin() + noise * y


def draw_disc(generator: Generator, n: int) -> Pair:
    radius, angle = uniform(generator, n).sqrt(), 2 * math.pi * uniform(generator, n)
    return radius * angle.cos(), radius * angle.sin()


def draw_clayton(generator: Generator, n: int, *, theta: float) -> Pair:
    """By inverting the conditional distribution of v given u, like the next two."""
    u, w = uniform(generator, n), uniform(generator, n)
    return u, (u**-theta * (w ** (-theta / (1 + theta)) - 1) + 1) ** (-1 / theta)


def draw_frank(generator: Generator, n: int, *, theta: float) -> Pair:
    u, w = uniform(generator, n), uniform(generator, n)
    shape = torch.exp(-theta * u)
    return u, torch.log1p(w * math.expm1(-theta) / (shape * (1 - w) + w)) / -theta


def draw_fgm(generator: Generator, n: int, *, theta: float) -> Pair:
    u, w = uniform(generator, n), uniform(generator, n)
    a = theta * (1 - 2 * u)
    return u, 2 * w / (1 + a + ((1 + a).square() - 4 * a * w).sqrt())


def draw_gumbel(generator: Generator, n: int, *, theta: float) -> Pair:
    """`u = exp(-(E / S)^alpha)`, alpha = 1 / theta, E exponential, S positive alpha-stable and shared.

    Source: J. M. Chambers, C. L. Mallows, B. W. Stuck, A method for simulating stable random variables,
    JASA 71 (1976), DOI 10.1080/01621459.1976.10480344.
    """
    alpha = 1 / theta
    angle = math.pi * uniform(generator, n)
    ratio = (((1 - alpha) * angle).sin() / gamma(generator, n, 1.0)) ** ((1 - alpha) / alpha)
    stable = (alpha * angle).sin() / angle.sin() ** (1 / alpha) * ratio
    u, v = (torch.exp(-((gamma(generator, n, 1.0) / stable) ** alpha)) for _ in range(2))
    return u, v


def draw_gamma_exponential(generator: Generator, n: int, *, shape: float) -> Pair:
    x = gamma(generator, n, shape)
    return x, gamma(generator, n, 1.0) / x


def draw_gamma_sum(generator: Generator, n: int, *, a: float, b: float) -> Pair:
    x = gamma(generator, n, a)
    return x, x + gamma(generator, n, b)


def draw_shared_mask(generator: Generator, n: int, *, kept: float) -> Pair:
    mask = uniform(generator, n) < kept
    return mask * gamma(generator, n, 1.0), mask * gamma(generator, n, 1.0)


def draw_dropped(generator: Generator, n: int, *, rho: float, kept: float) -> Pair:
    x, y = draw_gaussian(generator, n, rho=rho)
    return torch.where(uniform(generator, n) < kept, x, 0.0), y


def draw_channel(generator: Generator, n: int, *, levels: int, error: float) -> Pair:
    sent = torch.randint(levels, (n,), generator=generator)
    shift = torch.randint(1, levels, (n,), generator=generator) * (uniform(generator, n) < error)
    return sent.double(), ((sent + shift) % levels).double()


def draw_poisson_sum(generator: Generator, n: int, *, a: float, b: float) -> Pair:
    x, noise = (torch.poisson(torch.full((n,), rate, dtype=torch.float64), generator) for rate in (a, b))
    return x, x + noise


def draw_labels(generator: Generator, n: int, *, means: tuple[float, ...]) -> Pair:
    label = torch.randint(len(means), (n,), generator=generator)
    return label.double(), torch.tensor(means, dtype=torch.float64)[label] + normal(generator, n)


def draw_in_pieces(generator: Generator, n: int, *, rho: float, x: Pieces, y: Pieces) -> Pair:
    return tuple(  # type: ignore[return-value]
        in_pieces(values, pieces)
        for values, pieces in zip(draw_gaussian(generator, n, rho=rho), (x, y), strict=True)
    )


def in_pieces(values: Tensor, pieces: Pieces) -> Tensor:
    """The values, those of some ranges replaced by a number within it."""
    for low, high, single in pieces:
        if single:
            middle = (max(low, -9.0) + min(high, 9.0)) / 2
            values = torch.where((values > low) & (values <= high), middle, values)
    return values


def draw_sawtooth(generator: Generator, n: int, *, teeth: int, width: float) -> Pair:
    x = uniform(generator, n)
    return x, (teeth * x + width * (2 * uniform(generator, n) - 1)) % 1


def draw_checkerboard(generator: Generator, n: int, *, fields: int) -> Pair:
    """Uniform on the fields of one color."""
    row = torch.randint(fields, (n,), generator=generator)
    col = 2 * torch.randint(fields // 2, (n,), generator=generator) + row % 2
    return row + uniform(generator, n), col + uniform(generator, n)


def _case(
    family: str,
    name: str,
    draw: Callable[..., Pair],
    truth: Callable[..., float],
    half: Half,
    **parameters: object,
) -> Case:
    """A case whose draws and truth take the same parameters, which also stand in its name."""
    return Case(
        name.format(**parameters), family, half, partial(draw, **parameters), partial(truth, **parameters)
    )


_gaussian = partial(_case, "gaussian", "gaussian {rho:g}", draw_gaussian, truths.gaussian)
_student = partial(_case, "student", "student-t nu={nu} {rho:g}", draw_student, truths.student_t)
_uniform = partial(
    _case, "uniform noise", "uniform noise {width:g}", draw_additive_uniform, truths.additive_uniform
)
_ring = partial(_case, "circular", "ring {noise:g}", draw_ring, truths.ring)
_clayton = partial(_case, "copula", "clayton {theta:g}", draw_clayton, truths.clayton)
_frank = partial(_case, "copula", "frank {theta:g}", draw_frank, truths.frank)
_fgm = partial(_case, "copula", "fgm {theta:g}", draw_fgm, truths.fgm)
_gumbel = partial(_case, "copula", "gumbel {theta:g}", draw_gumbel, truths.gumbel)
_gamma_exponential = partial(
    _case, "gamma", "gamma-exponential {shape:g}", draw_gamma_exponential, truths.gamma_exponential
)
_gamma_sum = partial(_case, "gamma", "gamma sum {a:g} + {b:g}", draw_gamma_sum, truths.gamma_sum)


_mask = partial(_case, "tied", "shared mask {kept:g}", draw_shared_mask, truths.shared_mask, "reported")
_dropped = partial(_case, "tied", "gaussian {rho:g}, {kept:g} kept", draw_dropped, truths.dropped, "reported")
_channel = partial(
    _case, "discrete", "{levels} symbols, error {error:g}", draw_channel, truths.channel, "reported"
)
_poisson = partial(
    _case, "discrete", "poisson {a:g} + {b:g}", draw_poisson_sum, truths.poisson_sum, "reported"
)
_labels = partial(_case, "discrete", "labels {means}", draw_labels, truths.labels, "reported")


def _pieces(family: str, name: str, rho: float, x: Pieces, y: Pieces) -> Case:
    return _case(family, name, draw_in_pieces, truths.in_pieces, "reported", rho=rho, x=x, y=y)


def _sawtooth(teeth: int, width: float) -> Case:
    draw = partial(draw_sawtooth, teeth=teeth, width=width)
    return Case(f"{teeth} teeth, noise {width:g}", "rapid", "reported", draw, partial(truths.sawtooth, width))


def _checkerboard(fields: int) -> Case:
    draw = partial(draw_checkerboard, fields=fields)
    return Case(f"checkerboard {fields}", "rapid", "reported", draw, truths.checkerboard)


def _rectified(threshold: float) -> Pieces:
    return (-math.inf, threshold, True), (threshold, math.inf, False)


def _rounded(step: float) -> Pieces:
    edges = [(k - 0.5) * step for k in range(-round(8 / step), round(8 / step) + 2)]
    return tuple((a, b, True) for a, b in pairwise([-math.inf, *edges[1:-1], math.inf]))


CONTINUOUS: Pieces = ((-math.inf, math.inf, False),)
HARD_TANH: Pieces = ((-math.inf, -1.0, True), (-1.0, 1.0, False), (1.0, math.inf, True))
ABOVE_HALF: Pieces = ((-math.inf, 0.5, True), (0.5, math.inf, True))


def _mapped(half: Half, name: str, rho: float, left: Function, right: Function) -> Case:
    """Monotone maps of correlated normals, which leave the mutual information unchanged."""
    draw = partial(draw_mapped, rho=rho, left=left, right=right)
    return Case(f"{name} {rho:g}", "monotone", half, draw, partial(truths.gaussian, rho))


def _noisy(half: Half, family: str, name: str, mean: Function, scale: Function | float) -> Case:
    if not callable(scale):
        scale = partial(torch.full_like, fill_value=scale)
    return _case(family, name, draw_normal_noise, truths.normal_noise, half, mean=mean, scale=scale)


def _mixture(half: Half, name: str, scale: float, *blobs: tuple[float, float, float]) -> Case:
    return _case("mixture", name, draw_mixture, truths.mixture, half, blobs=blobs, scale=scale)


identity = torch.Tensor.clone
cube = partial(torch.pow, exponent=3)

CASES: tuple[Case, ...] = (
    _gaussian("tuning", rho=0.0),
    _gaussian("reported", rho=0.1),
    _gaussian("tuning", rho=0.3),
    _gaussian("reported", rho=0.6),
    _gaussian("tuning", rho=0.9),
    _gaussian("reported", rho=0.99),
    _gaussian("tuning", rho=0.999),
    _mapped("reported", "independent, cubed and exp", 0.0, cube, torch.exp),
    _mapped("tuning", "cubed", 0.8, cube, cube),
    _mapped("reported", "exp and cubed", 0.5, torch.exp, cube),
    _mapped("reported", "-exp(-x)", 0.95, identity, lambda x: -torch.exp(-x)),
    _student("tuning", rho=0.0, nu=1),
    _student("tuning", rho=0.8, nu=3),
    _student("reported", rho=0.0, nu=5),
    _student("reported", rho=0.6, nu=2),
    _uniform("tuning", width=0.1),
    _uniform("tuning", width=0.75),
    _uniform("reported", width=0.05),
    _uniform("reported", width=0.4),
    _mixture("tuning", "two blobs", 1.0, (-1.5, -1.5, 0.0), (1.5, 1.5, 0.0)),
    _mixture("reported", "three blobs", 0.5, (-2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (2.0, -1.0, 0.0)),
    _mixture("reported", "four blobs", 0.5, (-2.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, -2.0, 0.0), (0.0, 2.0, 0.0)),
    _mixture(
        "tuning", "four turned blobs", 0.6, (-2.0, 1.0, 0.0), (2.0, -1.0, 0.0), (1.0, 2.0, 0.0), (-1.0, -2.0, 0.0)
    ),
    _mixture("tuning", "cross 0.9", 1.0, (0.0, 0.0, 0.9), (0.0, 0.0, -0.9)),
    _mixture("reported", "cross 0.97", 1.0, (0.0, 0.0, 0.97), (0.0, 0.0, -0.97)),
    _noisy("tuning", "heteroscedastic", "scale 0.2 + |x|", torch.zeros_like, lambda x: 0.2 + x.abs()),
    _noisy("reported", "heteroscedastic", "scale exp(x)", torch.zeros_like, torch.exp),
    _noisy("reported", "heteroscedastic", "x + scale 0.1 + x^2 / 2", identity, lambda x: 0.1 + x.square() / 2),
    _noisy("tuning", "non-linear", "x^2, noise 0.5", torch.square, 0.5),
    _noisy("reported", "non-linear", "x^2, noise 0.2", torch.square, 0.2),
    _noisy("reported", "non-linear", "x^2, noise 2", torch.square, 2.0),
    _noisy("tuning", "non-linear", "sin 2x, noise 0.5", lambda x: torch.sin(2 * x), 0.5),
    _noisy("reported", "non-linear", "sin 3x, noise 0.3", lambda x: torch.sin(3 * x), 0.3),
    _noisy("tuning", "non-linear", "tanh 2x, noise 0.3", lambda x: torch.tanh(2 * x), 0.3),
    _noisy("reported", "non-linear", "tanh 4x, noise 0.2", lambda x: torch.tanh(4 * x), 0.2),
    _ring("tuning", noise=0.3),
    _ring("reported", noise=0.15),
    Case("disc", "circular", "tuning", draw_disc, truths.disc),
    _clayton("tuning", theta=3.0),
    _clayton("reported", theta=0.8),
    _gumbel("tuning", theta=1.5),
    _gumbel("reported", theta=3.0),
    _frank("tuning", theta=4.0),
    _frank("reported", theta=12.0),
    _fgm("reported", theta=1.0),
    _fgm("tuning", theta=0.5),
    _noisy("tuning", "rectified", "relu, noise 0.3", torch.relu, 0.3),
    _noisy("reported", "rectified", "relu, noise 0.1", torch.relu, 0.1),
    _gamma_exponential("tuning", shape=1.0),
    _gamma_exponential("reported", shape=0.5),
    _gamma_sum("tuning", a=1.0, b=1.0),
    _gamma_sum("reported", a=2.0, b=1.0),
    _mask(kept=0.5),
    _mask(kept=0.2),
    _dropped(rho=0.9, kept=0.4),
    _pieces("tied", "independent, 60 % and 60 % zero", 0.0, _rectified(0.2533), _rectified(0.2533)),
    _pieces("tied", "independent, 90 % and 50 % zero", 0.0, _rectified(1.2816), _rectified(0.0)),
    _pieces("tied", "gaussian 0.6, half zero", 0.6, _rectified(0.0), _rectified(0.0)),
    _pieces("tied", "gaussian 0.9, 60 % zero", 0.9, _rectified(0.2533), _rectified(0.2533)),
    _pieces("tied", "gaussian 0.8, one 84 % zero", 0.8, _rectified(1.0), CONTINUOUS),
    _pieces("tied", "gaussian 0.8, hard tanh", 0.8, HARD_TANH, HARD_TANH),
    _channel(levels=2, error=0.1),
    _channel(levels=5, error=0.3),
    _channel(levels=10, error=0.9),
    _poisson(a=3.0, b=2.0),
    _labels(means=(-2.0, 0.0, 2.0)),
    _labels(means=(0.0, 0.5)),
    _pieces("discrete", "gaussian 0.8, steps of 0.5", 0.8, _rounded(0.5), _rounded(0.5)),
    _pieces("discrete", "gaussian 0.5, steps of 1", 0.5, _rounded(1.0), _rounded(1.0)),
    _pieces("discrete", "gaussian 0.9, one above 0.5", 0.9, ABOVE_HALF, CONTINUOUS),
    _noisy("reported", "rapid", "cos 6x, noise 0.3", lambda x: torch.cos(6 * x), 0.3),
    _noisy("reported", "rapid", "sin 8x, noise 0.5", lambda x: torch.sin(8 * x), 0.5),
    _sawtooth(teeth=4, width=0.1),
    _sawtooth(teeth=8, width=0.25),
    _checkerboard(fields=4),
    _checkerboard(fields=8),
)  # fmt: skip
