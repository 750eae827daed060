"""The public functions: documented, validated, then handed to the implementation asked for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Union, Unpack

import torch
from torch import Tensor

from mikernels import adaptive, reference
from mikernels.calibration import gaussian_curve
from mikernels.pairs import Block, Pairs, best_pairs, fill_matrix, pairs_over
from mikernels.problem import (
    DEFAULT_MEMORY_BUDGET,
    Estimator,
    Impl,
    Precision,
    Problem,
    Transform,
    choose,
    make_problem,
)
from mikernels.transforms import Variables, transform_samples
from mikernels.validation import as_samples

if TYPE_CHECKING:
    import numpy as np

Samples = Union[Tensor, "np.ndarray"]


class Options(TypedDict, total=False):
    """The keywords that all functions share; `mutual_information` says what they mean."""

    estimator: Estimator
    nodes: int
    transform: Transform
    bandwidth: float | str | None
    calibrate: bool | None
    impl: Impl
    precision: Precision
    device: torch.device | str | None
    memory_budget: int
    seed: int


def mutual_information(
    x: Samples,
    y: Samples | None = None,
    *,
    estimator: Estimator = "grid",
    nodes: int = 16,
    transform: Transform = "rank",
    bandwidth: float | str | None = None,
    calibrate: bool | None = None,
    impl: Impl = "auto",
    precision: Precision = "auto",
    device: torch.device | str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    seed: int = 0,
) -> Tensor:
    """Mutual information of every pair of variables, by kernel density estimation, in nats.

    Args:
        x: `[M, N]` samples of N variables, a torch tensor or numpy array of float16, bfloat16, float32 or
            float64; M >= 8, and N >= 2 where there is no `y`.
        y: `[M, K]` samples of other variables taken together with those of `x`. Without it, pairs are
            within `x`.
        estimator: `"grid"` evaluates the densities on `nodes` points per variable, in time linear in M;
            `"kde"` is the resubstitution estimate at the samples, in time quadratic in M; `"renyi2"` is the
            matrix-based Renyi information of order 2. `mikernels.reference` holds the three formulas.
            `"adaptive"` chooses a bandwidth for each pair and takes out its bias, at several times the cost
            of `grid`: for values in nats that one can rely on (`mikernels.adaptive`; ranks only).
        nodes: G, points per variable of `grid`, 2 to 256. More of them resolve stronger dependence, at
            a cost that grows as G^2; at 16 the values saturate at about 1.1 nats, in the right order.
        transform: `"rank"` replaces values by normal scores of their ranks, so that monotone maps of a
            variable change nothing; equal values are ranked at random (see `seed`). `"standardize"` keeps
            the values, at mean 0 and standard deviation 1.
        bandwidth: of the Gaussian kernel, in standard deviations. None is Silverman's `M^(-1/6)`, for
            `grid` not below 0.75 of the distance between nodes; `"silverman"` has no such floor.
        calibrate: map estimates so that Gaussian copulas come out right at this M (`mikernels.calibration`);
            the order of pairs stays. None does so for `adaptive` only.
        impl: `"torch"` is tiled matrix products, `"reference"` the equations in float64 (memory grows as
            N M^2: for small inputs), `"auto"` the fastest that runs on the device.
        precision: `"int8"` (`grid` and `adaptive` with ranks: exact sums of 8-bit integers), `"fp32"`, or
            `"fp64"` (only and always the reference); `"auto"` takes the fastest.
        device: where to compute; by default where `x` is.
        memory_budget: bytes of workspace beyond inputs and result.
        seed: for the order of equal values under the rank transform.

    Returns:
        `[N, N]`, symmetric, or `[N, K]` with `y`: float32 on the device. A constant variable has 0 with
        everything. The diagonal is the estimate for a variable with itself: its upper limit, not an entropy.
        Values are biased by the smoothing: above 0 for independent variables (`grid`: 0.003 at M = 4096;
        `kde`: 0.02) and below the truth for strong dependence, most of all for rapidly varying functions. Under
        the rank transform equal values carry no information, so that mostly-zero neurons share little.

    Raises:
        TypeError: an input that is not an array of a real floating-point dtype.
        ValueError: a wrong shape, fewer than 8 samples, NaN or infinite values, different sample counts, an
            unknown or impossible option, or a memory budget too small to work in.

    Source:
        Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030; the estimators as said in
        `mikernels.reference`.
    """
    task = _prepare(
        x,
        y,
        estimator=estimator,
        nodes=nodes,
        transform=transform,
        bandwidth=bandwidth,
        calibrate=calibrate,
        impl=impl,
        precision=precision,
        device=device,
        memory_budget=memory_budget,
        seed=seed,
    )
    n_rows, n_cols = len(task.x), len(task.x if task.y is None else task.y)
    out = torch.empty(n_rows, n_cols, dtype=torch.float32, device=task.x.data.device)
    return fill_matrix(task.blocks(), out, symmetric=task.y is None)


def top_pairs(x: Samples, k: int, y: Samples | None = None, **options: Unpack[Options]) -> Pairs:
    """The k pairs of highest mutual information, without the N x N matrix.

    Args:
        x, y, options: as for `mutual_information`.
        k: how many, at least 1; all pairs where there are fewer.

    Returns:
        Columns and nats, the highest first; within `x` each pair comes once, as `first < second`.

    Raises:
        TypeError, ValueError: as `mutual_information`, and ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    task = _prepare(x, y, **options)
    return best_pairs(task.blocks(), k, symmetric=task.y is None)


def pairs_above(x: Samples, threshold: float, y: Samples | None = None, **options: Unpack[Options]) -> Pairs:
    """Every pair whose mutual information exceeds `threshold` nats, without the N x N matrix.

    Arguments, results and errors are those of `top_pairs`; memory grows with the number of pairs found.
    """
    if not threshold == threshold:
        raise ValueError("threshold: expected a number of nats, got NaN")
    task = _prepare(x, y, **options)
    return pairs_over(task.blocks(), threshold, symmetric=task.y is None)


class _Task(NamedTuple):
    x: Variables
    y: Variables | None
    problem: Problem
    precision: Precision
    memory_budget: int
    calibrate: bool

    def blocks(self) -> Iterator[Block]:
        if not self.calibrate:
            yield from self._raw_blocks()
            return
        curve = gaussian_curve(self.x.n_samples, self.problem)
        others = self.x if self.y is None else self.y
        for row, col, mi in self._raw_blocks():
            nats = curve(mi)
            nats[self.x.constant[row : row + mi.shape[0]]] = 0.0
            nats[:, others.constant[col : col + mi.shape[1]]] = 0.0
            yield Block(row, col, nats)

    def _raw_blocks(self) -> Iterator[Block]:
        if self.precision == "fp64":
            yield _reference_block(self.x, self.x if self.y is None else self.y, self.problem)
            return
        # Imported here so that a caller of another implementation never loads this one.
        from mikernels.torch_impl import mi_blocks

        yield from mi_blocks(self.x, self.y, self.problem, self.precision, self.memory_budget)


def _prepare(
    x: Samples,
    y: Samples | None,
    *,
    estimator: Estimator = "grid",
    nodes: int = 16,
    transform: Transform = "rank",
    bandwidth: float | str | None = None,
    calibrate: bool | None = None,
    impl: Impl = "auto",
    precision: Precision = "auto",
    device: torch.device | str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    seed: int = 0,
) -> _Task:
    choose("transform", transform, Transform)
    xs = as_samples(x, "x", device)
    if y is None and xs.shape[1] < 2:
        raise ValueError(f"x: expected at least 2 variables (columns) to pair, got shape {list(xs.shape)}")
    problem = make_problem(estimator, nodes, bandwidth, xs.shape[0])
    if transform != "rank" and (estimator == "adaptive" or calibrate):
        what = "estimator='adaptive'" if estimator == "adaptive" else "calibrate=True"
        raise ValueError(f"transform: {what} expects 'rank', got {transform!r}")
    used_precision = _resolve_precision(impl, precision, problem, transform)
    ys = None if y is None else as_samples(y, "y", xs.device)
    if ys is not None and ys.shape[0] != xs.shape[0]:
        raise ValueError(f"y: expected as many samples as x, {xs.shape[0]}, got {ys.shape[0]}")
    return _Task(
        transform_samples(xs, transform, seed=seed),
        # Another seed: ties of x and y that were ordered alike would look like shared information.
        None if ys is None else transform_samples(ys, transform, seed=seed + 1),
        problem,
        used_precision,
        memory_budget,
        problem.estimator == "adaptive" if calibrate is None else calibrate,
    )


def _resolve_precision(impl: Impl, precision: Precision, problem: Problem, transform: Transform) -> Precision:
    choose("impl", impl, Impl)
    choose("precision", precision, Precision)
    if impl == "reference":
        possible: tuple[Precision, ...] = ("fp64",)
    elif problem.estimator == "adaptive":
        possible = ("int8",)
    elif problem.estimator == "grid" and transform == "rank":
        possible = ("int8", "fp32")
    else:
        possible = ("fp32",)
    if precision == "auto":
        return possible[0]
    if precision not in possible:
        raise ValueError(
            f"precision: {problem.estimator!r} with transform={transform!r} and impl={impl!r} expects one of "
            f"{', '.join(map(repr, possible))}, got {precision!r}"
        )
    return precision


def _reference_block(x: Variables, y: Variables, problem: Problem) -> Block:
    if problem.estimator == "adaptive":
        mi = adaptive.mutual_information(x.data, y.data)
    else:
        mi = reference.mutual_information(
            x.scores(dtype=torch.float64), y.scores(dtype=torch.float64), problem
        )
    mi[x.constant] = 0.0
    mi[:, y.constant] = 0.0
    return Block(0, 0, mi.float())
