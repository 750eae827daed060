"""From resolved options to blocks of the matrix: choose the implementation and the precision, and run it."""

import functools
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from mikernels import reference
from mikernels.devices import require_float64
from mikernels.errors import UnsupportedError
from mikernels.memory import Workspace
from mikernels.method import Method, needs_of, run_tiles
from mikernels.options import Impl, Options, Precision, Problem, grid_floor
from mikernels.pairs import Block
from mikernels.provenance import Provenance
from mikernels.ranks import ALONE, Ranks
from mikernels.transforms import Variables, transform_samples, transformed_dtype
from mikernels.tuning.bandwidth import leave_one_out_bandwidth
from mikernels.tuning.calibration import Calibration
from mikernels.validation import read_values


def compute_blocks(
    x: Tensor,
    y: Tensor | None,
    options: Options,
    note: Provenance | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Block]:
    """Blocks of the matrix of `x [M, N]` with itself or with `y [M, K]`, on their device.

    Args:
        options: resolved (`mikernels.options.resolve`).
        note: gets the entries `atoms` and `one_set` (`mikernels.provenance`).
        ranks: processes that have the same samples and options, and share out the blocks.

    Raises:
        ValueError: values that cannot be used (`mikernels.validation.read_values`), a memory budget that is too small,
            or an implementation or a precision that cannot run.
    """
    if note is not None:
        note["one_set"] = y is None or _are_equal(x, y)
    xs, ys, problem = ready(x, y, options)
    if note is not None:
        note["atoms"] = xs.has_atoms | (xs if ys is None else ys).has_atoms
    yield from estimate(xs, ys, problem, options, ranks)


def ready(x: Tensor, y: Tensor | None, options: Options) -> tuple[Variables, Variables | None, Problem]:
    """Samples as `estimate` takes them; see `compute_blocks`."""
    require_float64(x.device)
    choose_implementation(options, x.device)  # before the first long step
    x = read_values(x, "x", check=options["check_finite"])
    if y is not None:
        y = read_values(y, "y", check=options["check_finite"])
    problem = problem_of(x, y, options)
    xs = transformed(x, problem, options)
    return xs, None if y is None else transformed(y, problem, options, second=True), problem


def _are_equal(x: Tensor, y: Tensor) -> Tensor | bool:
    """Whether all values are the same; on a GPU without waiting for it."""
    return x.shape == y.shape and x.dtype == y.dtype and (x == y).all()


def problem_of(x: Tensor, y: Tensor | None, options: Options) -> Problem:
    """The estimator that resolved options name, with the bandwidth that was given or that the samples choose."""
    return Problem(options["estimator"], options["nodes"], _bandwidth(x, y, options))


def transformed(x: Tensor, problem: Problem, options: Options, *, second: bool = False) -> Variables:
    """`x [M, N]` as the kernels see it.

    Args:
        second: whether these are the other variables of a call. Ties of both ranked in the same order would look like
            shared information, so their seed is another.
    """
    seed = options["seed"] + second
    return transform_samples(x, options["transform"], seed=seed, most_atoms=problem.most_atoms)


def estimate(
    xs: Variables, ys: Variables | None, problem: Problem, options: Options, ranks: Ranks = ALONE
) -> Iterator[Block]:
    """Blocks of the matrix of transformed variables; see `compute_blocks`."""
    columns = xs if ys is None else ys
    device = xs.data.device
    impl, precision = choose_implementation(options, device)
    calibration = Calibration(xs, columns, problem) if options["calibrate"] else None
    if impl == "reference":
        blocks = iter([_reference_block(xs, columns, problem)] if ranks.is_first else [])
    else:
        method = _load_method(problem, impl, precision, device, options["autotune"])
        blocks = run_tiles(method, xs, ys, options["memory_budget"], ranks)
    for block in blocks:
        row, col, mi = block
        if calibration is not None:
            mi = calibration(block)
        mi.masked_fill_(xs.constant[row : row + mi.shape[0], None], 0.0)
        mi.masked_fill_(columns.constant[col : col + mi.shape[1]], 0.0)
        yield Block(row, col, mi)


def workspace(x: Tensor, y: Tensor | None, options: Options, device: torch.device) -> Workspace:
    """Memory that `compute_blocks` takes on a device for inputs of these shapes and dtypes; values are not read.

    Raises:
        WorkspaceError: the budget of the options is too small.
        UnsupportedError: see `compute_blocks`; or the reference, which has no budget.
    """
    impl, precision = choose_implementation(options, device)
    if impl == "reference":
        raise UnsupportedError("impl: expected one that works in pieces, got 'reference'")
    problem = Problem(options["estimator"], options["nodes"], options["bandwidth"] or 1.0)  # type: ignore[arg-type]
    method = _load_method(problem, impl, precision, device, options["autotune"])
    inputs = 0
    for samples in (x,) if y is None else (x, y):
        inputs += samples.numel() * transformed_dtype(samples.dtype, options["transform"]).itemsize
    needs = needs_of(method, len(x), max(x.shape[1], 0 if y is None else y.shape[1]), inputs)
    pieces = needs.pieces(needs.budget(options["memory_budget"], device))
    return Workspace(needs.workspace(1, 1), needs.workspace(*pieces))


def choose_implementation(options: Options, device: torch.device) -> tuple[Impl, Precision]:
    """Replace `"auto"` by what suits the device, and check that an explicit choice can run there.

    Raises:
        UnsupportedError: a precision that the implementation does not have on this device.
    """
    estimator, impl, precision = options["estimator"], options["impl"], options["precision"]
    if impl == "auto":
        impl = "triton" if _runs_triton(device) else "torch"
    ranked = estimator in ("grid", "adaptive") and options["transform"] == "rank"
    if impl == "reference":
        possible: tuple[Precision, ...] = ("fp64",)
    elif impl == "torch":
        possible = ("int8", "fp32") if ranked else ("fp32",)
    else:
        from mikernels.triton_impl import chip_precisions

        possible = chip_precisions(device)
        if estimator in ("kde", "renyi2"):
            possible = tuple(p for p in possible if p != "int8")
        elif not ranked:  # 8-bit shares come from the table of ranks
            possible = tuple(p for p in possible if p not in ("int8", "fp8"))
    if estimator == "adaptive" and impl != "reference":  # it sums integer counts
        possible = ("int8",)
    if precision == "auto":
        return impl, possible[0]
    if precision not in possible:
        raise UnsupportedError(
            f"precision: expected one of {', '.join(map(repr, possible))} for {estimator!r} with "
            f"transform={options['transform']!r} and impl={impl!r} on {device}, got {precision!r}"
        )
    return impl, precision


def _runs_triton(device: torch.device) -> bool:
    """Whether Triton is installed and has kernels for the device; a warning if it is a GPU without them."""
    if device.type != "cuda" or not find_spec("triton"):
        return False
    from mikernels.triton_impl import unsupported

    reason = unsupported(device)
    if reason:
        _warn_once(f"impl: 'auto' takes the slower 'torch' on {device}, since 'triton' {reason}")
    return reason is None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _bandwidth(x: Tensor, y: Tensor | None, options: Options) -> float:
    """The bandwidth that was given, or the one that the samples choose (`"loo"`)."""
    h = options["bandwidth"]
    if h is not None:
        return float(h)
    most_atoms = Problem(options["estimator"], options["nodes"], 1.0).most_atoms
    h = leave_one_out_bandwidth(x, y, options["transform"], options["seed"], most_atoms)
    return max(h, grid_floor(options["nodes"])) if options["estimator"] == "grid" else h


def _load_method(
    problem: Problem, impl: Impl, precision: Precision, device: torch.device, autotune: bool
) -> Method:
    """The method of an implementation, which is imported here: a caller of one never loads the other."""
    if impl == "torch":
        from mikernels import torch_impl

        return torch_impl.method(problem, precision)
    from mikernels import triton_impl

    return triton_impl.method(problem, precision, device, autotune)


def _reference_block(x: Variables, y: Variables, problem: Problem) -> Block:
    return Block(0, 0, reference.mutual_information(x.data, y.data, problem).float())
