"""From checked settings to blocks of the matrix: which implementation runs, and in what precision."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels import reference
from mikernels.options import Estimator, Impl, Precision, Problem, Transform
from mikernels.pairs import Block
from mikernels.tiles import Method, mi_blocks
from mikernels.transforms import Variables, transform_samples
from mikernels.tuning.calibration import gaussian_curve
from mikernels.validation import check_finite


class Settings(NamedTuple):
    """Everything that fixes a result, in plain values."""

    estimator: Estimator
    nodes: int
    bandwidth: float
    transform: Transform
    calibrate: bool
    impl: Impl
    precision: Precision
    memory_budget: int | None
    """Bytes of workspace; None for what suits the device."""
    seed: int
    """For the order of equal values under the rank transform."""
    autotune: bool
    """Whether Triton may try tile sizes; without, they are fixed by chip."""


def blocks(x: Tensor, y: Tensor | None, settings: Settings) -> Iterator[Block]:
    """Blocks of the matrix of `x [M, N]` with itself or with `y [M, K]`, on their device.

    Raises:
        ValueError: NaN or infinite values, a memory budget too small to work in, or an implementation or a
            precision that cannot run.
    """
    impl, precision = _resolve(settings, x.device)
    check_finite(x, "x")
    xs = transform_samples(x, settings.transform, seed=settings.seed)
    ys = None
    if y is not None:
        check_finite(y, "y")
        # Another seed: ties of x and y that were ordered alike would look like shared information.
        ys = transform_samples(y, settings.transform, seed=settings.seed + 1)
    problem = Problem(settings.estimator, settings.nodes, settings.bandwidth)
    others = xs if ys is None else ys
    curve = gaussian_curve(xs.n_samples, problem) if settings.calibrate else None
    if impl == "reference":
        parts = iter([_reference_block(xs, others, problem)])
    else:
        parts = mi_blocks(
            _method(problem, impl, precision, x.device, settings.autotune), xs, ys, settings.memory_budget
        )
    for row, col, raw in parts:
        mi = raw if curve is None else curve(raw)
        mi.masked_fill_(xs.constant[row : row + mi.shape[0], None], 0.0)
        mi.masked_fill_(others.constant[col : col + mi.shape[1]], 0.0)
        yield Block(row, col, mi)


def _method(
    problem: Problem, impl: Impl, precision: Precision, device: torch.device, autotune: bool
) -> Method:
    """Imported where it is asked for, so that a caller of one implementation never loads another."""
    if impl == "torch":
        from mikernels import torch_impl

        return torch_impl.method(problem, precision)
    from mikernels import triton_impl

    return triton_impl.method(problem, precision, device, autotune)


def _resolve(settings: Settings, device: torch.device) -> tuple[Impl, Precision]:
    """What `"auto"` stands for on a device, and whether what was asked for can run."""
    impl, precision = settings.impl, settings.precision
    if impl == "auto":
        impl = "triton" if device.type == "cuda" and find_spec("triton") else "torch"
    integers = settings.estimator in ("grid", "adaptive") and settings.transform == "rank"
    if impl == "reference":
        possible: tuple[Precision, ...] = ("fp64",)
    elif impl == "torch":
        possible = ("int8", "fp32") if integers else ("fp32",)
    else:
        from mikernels.triton_impl import chip_precisions

        possible = chip_precisions(device)
        if settings.estimator in ("kde", "renyi2"):
            possible = tuple(p for p in possible if p != "int8")
        elif not integers:  # 8-bit shares are made by the table of ranks
            possible = tuple(p for p in possible if p not in ("int8", "fp8"))
    if settings.estimator == "adaptive" and impl != "reference":  # it counts
        possible = ("int8",)
    if precision == "auto":
        return impl, possible[0]
    if precision not in possible:
        raise ValueError(
            f"precision: {settings.estimator!r} with transform={settings.transform!r} and impl={impl!r} on {device} "
            f"expects one of {', '.join(map(repr, possible))}, got {precision!r}"
        )
    return impl, precision


def _reference_block(x: Variables, y: Variables, problem: Problem) -> Block:
    left, right = x.scores(dtype=torch.float64), y.scores(dtype=torch.float64)
    return Block(0, 0, reference.mutual_information(left, right, problem).float())
