"""From checked settings to blocks of the matrix: which implementation runs, and in what precision."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels import reference
from mikernels.pairs import Block
from mikernels.problem import Estimator, Impl, Precision, Problem, Transform
from mikernels.tiles import mi_blocks
from mikernels.transforms import Variables, transform_samples
from mikernels.validation import check_finite


class Settings(NamedTuple):
    """Everything that fixes a result, in plain values."""

    estimator: Estimator
    nodes: int
    bandwidth: float
    transform: Transform
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
    problem = Problem(settings.estimator, settings.nodes, settings.bandwidth)
    impl, precision = _resolve(settings, x.device)
    check_finite(x, "x")
    xs = transform_samples(x, settings.transform, seed=settings.seed)
    ys = None
    if y is not None:
        check_finite(y, "y")
        # Another seed: ties of x and y that were ordered alike would look like shared information.
        ys = transform_samples(y, settings.transform, seed=settings.seed + 1)
    # Implementations are imported where they run, so that a caller of one never loads another.
    if impl == "reference":
        yield _reference_block(xs, xs if ys is None else ys, problem)
    elif impl == "torch":
        from mikernels import torch_impl

        method = torch_impl.method(problem, precision)
        yield from mi_blocks(method, xs, ys, settings.memory_budget)
    else:
        from mikernels import triton_impl

        method = triton_impl.method(problem, precision, x.device, settings.autotune)
        yield from mi_blocks(method, xs, ys, settings.memory_budget)


def _resolve(settings: Settings, device: torch.device) -> tuple[Impl, Precision]:
    """What `"auto"` stands for on a device, and whether what was asked for can run."""
    impl, precision = settings.impl, settings.precision
    if impl == "auto":
        impl = "triton" if device.type == "cuda" and find_spec("triton") else "torch"
    ranked_grid = settings.estimator == "grid" and settings.transform == "rank"
    if impl == "reference":
        possible: tuple[Precision, ...] = ("fp64",)
    elif impl == "torch":
        possible = ("int8", "fp32") if ranked_grid else ("fp32",)
    else:
        from mikernels.triton_impl import chip_precisions

        possible = chip_precisions(device)
        if settings.estimator != "grid":
            possible = tuple(p for p in possible if p != "int8")
        elif not ranked_grid:  # 8-bit shares are made by the table of ranks
            possible = tuple(p for p in possible if p not in ("int8", "fp8"))
    if precision == "auto":
        return impl, possible[0]
    if precision not in possible:
        raise ValueError(
            f"precision: {settings.estimator!r} with transform={settings.transform!r} and impl={impl!r} on {device} "
            f"expects one of {', '.join(map(repr, possible))}, got {precision!r}"
        )
    return impl, precision


def _reference_block(x: Variables, y: Variables, problem: Problem) -> Block:
    mi = reference.mutual_information(x.scores(dtype=torch.float64), y.scores(dtype=torch.float64), problem)
    mi[x.constant] = 0.0
    mi[:, y.constant] = 0.0
    return Block(0, 0, mi.float())
