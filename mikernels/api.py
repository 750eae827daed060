"""The public functions: documented, validated, then handed to the implementation asked for."""

from typing import TYPE_CHECKING, TypedDict, Union, Unpack

import torch
from torch import Tensor

from mikernels import ops  # noqa: F401  registers torch.ops.mikernels
from mikernels.engine import Settings
from mikernels.options import Estimator, Impl, Precision, Transform, choose, grid_floor, make_problem
from mikernels.pairs import Pairs
from mikernels.tuning.bandwidth import leave_one_out_bandwidth
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
    memory_budget: int | None
    seed: int
    autotune: bool


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
    memory_budget: int | None = None,
    seed: int = 0,
    autotune: bool = False,
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
            of `grid`: for values in nats that one can rely on (`mikernels.tables.ladder`; ranks only).
        nodes: G, points per variable of `grid`, 2 to 256. More of them resolve stronger dependence, at
            a cost that grows as G^2; at 16 the values saturate at about 1.1 nats, in the right order.
        transform: `"rank"` replaces values by normal scores of their ranks, so that monotone maps of a
            variable change nothing; equal values are ranked at random (see `seed`). `"standardize"` keeps
            the values, at mean 0 and standard deviation 1.
        bandwidth: of the Gaussian kernel, in standard deviations. None is Silverman's `M^(-1/6)`, for
            `grid` not below 0.75 of the distance between nodes; `"silverman"` has no such floor, and
            `"scott"` is the same in two dimensions. `"loo"` (`kde` and `grid`, there with the floor) is the
            one of a ladder that gives unseen samples the highest likelihood (`mikernels.tuning.bandwidth`).
        calibrate: map estimates so that Gaussian copulas come out right at this M (`mikernels.tuning.calibration`);
            the order of pairs stays. None does so for `adaptive` only.
        impl: `"triton"` is GPU kernels, `"torch"` tiled matrix products on any device, `"reference"` the
            equations in float64 (memory grows as N M^2: for small inputs); `"auto"` is Triton on a GPU and
            torch elsewhere.
        precision: of the operands. `"int8"` (`grid` and `adaptive` with ranks: exact sums of 8-bit integers) and
            `"fp32"`; with Triton also `"fp16"` and, where the chip has it, `"fp8"`; `"fp64"` only and always in
            the reference. `"auto"` takes int8 where it can, then fp16 with Triton and fp32 with torch.
        device: where to compute; by default where `x` is.
        memory_budget: bytes of workspace beyond inputs and result; by default 1 GiB, or on a GPU half of what
            is free. The result does not depend on it.
        seed: for the order of equal values under the rank transform.
        autotune: let Triton time a few tile sizes on the first call of a kind and keep the best (cached on
            disk). Without it they are fixed by chip, and results are the same bits from run to run.

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
    xs, ys, settings = _prepare(
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
        autotune=autotune,
    )
    return torch.ops.mikernels.mutual_information(xs, ys, *settings)


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
    xs, ys, settings = _prepare(x, y, **options)
    return Pairs(*torch.ops.mikernels.top_pairs(xs, ys, *settings, k))


def pairs_above(x: Samples, threshold: float, y: Samples | None = None, **options: Unpack[Options]) -> Pairs:
    """Every pair whose mutual information exceeds `threshold` nats, without the N x N matrix.

    Arguments, results and errors are those of `top_pairs`; memory grows with the number of pairs found.
    """
    if not threshold == threshold:
        raise ValueError("threshold: expected a number of nats, got NaN")
    xs, ys, settings = _prepare(x, y, **options)
    return Pairs(*torch.ops.mikernels.pairs_above(xs, ys, *settings, threshold))


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
    memory_budget: int | None = None,
    seed: int = 0,
    autotune: bool = False,
) -> tuple[Tensor, Tensor | None, Settings]:
    """Everything that can be said without looking at the samples' values, but for `bandwidth="loo"`."""
    choose("transform", transform, Transform)
    choose("impl", impl, Impl)
    choose("precision", precision, Precision)
    xs = as_samples(x, "x", device)
    if y is None and xs.shape[1] < 2:
        raise ValueError(f"x: expected at least 2 variables (columns) to pair, got shape {list(xs.shape)}")
    chosen = None if bandwidth == "loo" and estimator in ("kde", "grid") else bandwidth
    problem = make_problem(estimator, nodes, chosen, xs.shape[0])
    if transform != "rank" and (estimator == "adaptive" or calibrate):
        what = "estimator='adaptive'" if estimator == "adaptive" else "calibrate=True"
        raise ValueError(f"transform: {what} expects 'rank', got {transform!r}")
    ys = None if y is None else as_samples(y, "y", xs.device)
    if ys is not None and ys.shape[0] != xs.shape[0]:
        raise ValueError(f"y: expected as many samples as x, {xs.shape[0]}, got {ys.shape[0]}")
    h = problem.bandwidth
    if chosen != bandwidth:
        h = leave_one_out_bandwidth(xs, ys, transform, seed % 2**32)
        h = max(h, grid_floor(nodes)) if estimator == "grid" else h
    settings = Settings(
        problem.estimator,
        problem.nodes,
        h,
        transform,
        problem.estimator == "adaptive" if calibrate is None else calibrate,
        impl,
        precision,
        memory_budget,
        seed % 2**32,
        autotune,
    )
    return xs, ys, settings
