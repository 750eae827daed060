"""The public functions: documented here, checked, then handed to torch's operators."""

from typing import Any, Unpack, overload

import torch
from torch import Tensor

from mikernels import engine, ops  # ops registers torch.ops.mikernels
from mikernels.arrays import Samples, as_given, pairs_as_given, to_tensor, with_note
from mikernels.errors import SamplesValueError
from mikernels.frames import check_order
from mikernels.memory import Workspace
from mikernels.numbers import positive, real
from mikernels.options import LARGEST, Options, plain, resolve, shows_options, to_operator
from mikernels.pairs import Pairs
from mikernels.ranks import Ranks
from mikernels.validation import as_samples, refuse_meta


@overload
def mutual_information(
    x: Tensor,
    y: Samples | None = None,
    *,
    out: Tensor | None = None,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def mutual_information(
    x: Samples,
    y: Samples | None = None,
    *,
    out: Any = None,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Any: ...


@shows_options()
def mutual_information(
    x: Samples,
    y: Samples | None = None,
    *,
    out: Any = None,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Any:
    """Estimate the mutual information of every pair of variables by kernel density estimation, in nats.

    Args:
        x: `[M, N]` samples of N variables; M >= 8, and N >= 2 without `y`. A dense torch tensor, a NumPy array or a
            list of rows; an array with DLPack (JAX, CuPy, the array API standard); a table of pandas, polars or
            pyarrow, or an AnnData, whose columns have different names; a sparse matrix of SciPy. Of real numbers of at
            most 64 bits: integers, booleans and 8-bit floats are converted exactly. One dimension is one variable.
        y: `[M, K]` samples of other variables, taken together with those of `x`. Without it, pairs are within `x`.
        out: a tensor or a writable NumPy array, such as a `numpy.memmap`, to write the result to and to return: float32
            `[N, N]` or `[N, K]`, on the device where it is computed.
        process_group: of `torch.distributed` (`torch.distributed.group.WORLD` is that of all processes). All of its
            processes call with the same samples and options and share out the work; each returns what one process
            would, and an error of one is raised on all. By default, this process computes alone.
        estimator: `"grid"` (default) evaluates the densities on `nodes` points per variable, in time linear in M.
            `"kde"` is the resubstitution estimate at the samples, in time quadratic in M. `"renyi2"` is the
            matrix-based Renyi information of order 2. `"adaptive"` chooses a bandwidth for each pair and removes
            its bias: for values in nats that you can rely on, at several times the cost of `grid`, with ranks only.
            `mikernels.reference` defines all four.
        nodes: G, points per variable of `grid`, 2 to 256 (default 16), at a cost that grows as G^2. By default values
            saturate at about 1.1 nats but stay in the right order, and more nodes alone change little: the bandwidth
            limits what they resolve. With `bandwidth=3.6 / (nodes - 1)`, which is 0.75 of their distance, more nodes
            resolve stronger and faster varying dependence, and add more chance to all pairs.
        transform: `"rank"` (default) replaces values by the normal scores of their ranks, so monotone maps of a
            variable change nothing. A value that 2 % of the samples or more (and at least 8) share, and three times as
            many as either value next to it, is an *atom*: it has a cell of its own, over which nothing is smoothed,
            such as the zero of a ReLU. A column of a few discrete values is an exact table of counts. With `grid` a
            column has at most `nodes` / 2 atoms, the most frequent ones, or `nodes` discrete values. Other equal
            values are ranked at random (see `seed`). `"standardize"` keeps the values, at mean 0 and standard
            deviation 1, and knows no atoms.
        bandwidth: of the Gaussian kernel, in standard deviations. By default Silverman's `M^(-1/6)`, for `grid` at
            least 0.75 of the distance between nodes. `"silverman"` has no such floor; `"scott"` equals it in two
            dimensions. `"loo"` (`kde` and `grid`, there with the floor) is the bandwidth of a ladder that gives
            unseen samples the highest likelihood (`mikernels.tuning.bandwidth`).
        calibrate: map estimates so that Gaussian copulas come out right at this M (`mikernels.tuning.calibration`); the
            order of pairs stays. Of pairs with atoms, `grid` and `kde` lose what chance adds to their tables, which
            makes pairs of all kinds comparable, and the map has the weight of the samples outside of the atoms. By
            default only `adaptive` is calibrated.
        impl: `"triton"` runs GPU kernels (NVIDIA from compute capability 8.0, AMD gfx942), `"torch"` tiled matrix
            products on any device with float64, `"reference"` the equations in float64 (memory grows as N M^2: for
            small inputs). `"auto"` (default) is Triton on those GPUs and torch elsewhere, with a warning on others.
        precision: of the operands. `"int8"` (`grid` and `adaptive` with ranks: exact sums of 8-bit integers) or
            `"fp32"`; with Triton also `"fp16"` and, where the chip has it, `"fp8"`; in the reference only
            `"fp64"`. `"auto"` (default) is int8 where possible, otherwise fp16 with Triton and fp32 with torch.
        memory_budget: bytes of workspace beyond inputs and result (`workspace_bytes` says what is not in it). By
            default 1 GiB, or on a GPU half of the memory that is free or held unused by torch. The result does not
            depend on it, but for the rounding of fp32 with torch.
        seed: for the order of equal values under the rank transform (default 0).
        autotune: time a few tile sizes of the Triton kernels where a size of input (to a power of two) is new, and
            keep the best in this process. By default they are fixed by chip, and results have the same bits from run
            to run.
        check_finite: look for NaN, infinities and integers beyond 2^53 first, which waits for the GPU (default).
            Without it such values give wrong numbers instead of an error.
        device: where to compute; by default where the samples are. It must have float64, which Apple's MPS does not.

    Returns:
        `[N, N]`, symmetric, or `[N, K]` with `y`: float32, as an array of the kind of `x` where that is: a tensor on
        the device; a table with its names, labeled as by its `corr` (of pandas for an AnnData); NumPy's for a list or a
        sparse matrix. A constant variable has 0 with everything.
        The diagonal is what a copy of the variable would share with it (with equal values in the same order). For a
        column of discrete values that is its entropy. For a continuous one, whose information about itself is infinite,
        it only tells where the estimator saturates: it is no entropy, and values are not to be divided by it. Smoothing
        biases the values: above 0 for independent variables (`grid`: 0.003 at M = 4096; `kde`: 0.02) and below the
        truth for strong dependence, most of all for rapidly varying functions. Results are not differentiable: inputs
        are detached. They remember the options and M for the null (`mikernels.Null`).

    Raises:
        SamplesError: a TypeError for an input that is no array of real numbers; a ValueError for a wrong shape, fewer
            than 8 samples, NaN, infinite or masked values, integers beyond 2^53, different sample counts, or tables
            whose rows have labels in common, but not in the same places. If one has a `RangeIndex`, as pandas gives by
            default, rows are paired by place unless both have the same labels in another order.
        UnsupportedError: a ValueError for a device, an `impl` or a `precision` that cannot run here.
        WorkspaceError: a ValueError for a memory budget that is too small.
        TypeError: an option that does not exist.
        ValueError: an impossible value of another option, or of `out`; a process of the group that has other samples or
            options.
        RankError: a RuntimeError for another process of the group that has failed.

    Numbers of other libraries (NumPy's, 0-d tensors) are options too. Results do not depend on torch's defaults (dtype,
    device, TF32) or on the mode of the caller (autocast, inference mode), and leave them as they are.

    Threads and streams: the functions keep no state between calls except caches of constant tables
    (`clear_caches`), so threads may call them at the same time. Kernels run on the current stream of the device.

    Source: Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030; `mikernels.reference` cites the sources
    of the estimators.
    """
    if process_group is not None:
        ranks = Ranks(process_group)
        with ranks.together():
            xs, ys, resolved = prepare(x, y, options)
            into = None if out is None else _place(out, xs, ys)
            mi = ops.matrix(xs, ys, resolved, ranks, into)
        return as_given(mi, x, y) if out is None else with_note(out, mi)
    xs, ys, resolved = prepare(x, y, options)
    if out is None:
        return as_given(torch.ops.mikernels.mutual_information(xs, ys, *to_operator(resolved)), x, y)
    into = _place(out, xs, ys)
    torch.ops.mikernels.mutual_information_out(xs, ys, *to_operator(resolved), into)
    return with_note(out, into)


@shows_options()
def workspace_bytes(x: Samples, y: Samples | None = None, **options: Unpack[Options]) -> Workspace:
    """Find out how much memory a call of `mutual_information`, `top_pairs` or `pairs_above` takes, without computing.

    Args:
        x, y, options: see `mutual_information`. Only shapes and dtypes matter: tensors on the meta device, without
            values, will do, with `device` for where to compute.

    Returns:
        Bytes beyond inputs and result: the least that `memory_budget` accepts, and what these options take. On a GPU
        without `memory_budget` that depends on what is free now. Tables of constants, and lists of pairs while they are
        sorted, are not in it. Nor is what ranking takes before, about 100 MiB on a CPU, or 140 bytes for each sample of
        one column if that is more.

    Raises:
        MikernelsError, TypeError, ValueError: see `mutual_information`; UnsupportedError for `impl="reference"`, which
            does not work in pieces.
    """
    device = plain(options).get("device")
    xs, ys, resolved = prepare(x, y, options | {"device": None})
    if device is None:
        device = torch.device("cpu") if xs.is_meta else xs.device
    return engine.workspace(xs, ys, resolved, torch.device(device))


@overload
def top_pairs(
    x: Tensor, k: int, y: Samples | None = None, *, process_group: Any = None, **options: Unpack[Options]
) -> Pairs: ...


@overload
def top_pairs(
    x: Samples, k: int, y: Samples | None = None, *, process_group: Any = None, **options: Unpack[Options]
) -> Any: ...


@shows_options()
def top_pairs(
    x: Samples, k: int, y: Samples | None = None, *, process_group: Any = None, **options: Unpack[Options]
) -> Any:
    """Find the k pairs with the highest mutual information, without building the N x N matrix.

    Args:
        x, y, process_group, options: see `mutual_information`.
        k: number of pairs, at least 1; all pairs if there are fewer.

    Returns:
        `Pairs`, columns and nats as arrays of the kind of `x`, the highest first. Within `x` each pair comes once, as
        `first < second`. For a table or an AnnData, a table with the columns `first` and `second`, names, and `mi`.

    Raises:
        TypeError, ValueError: see `mutual_information`; ValueError for k < 1.
    """
    if process_group is not None:
        ranks = Ranks(process_group)
        with ranks.together():
            return pairs_as_given(ops.best(*prepare(x, y, options), _number_of_pairs(k), ranks), x, y)
    k = _number_of_pairs(k)
    xs, ys, resolved = prepare(x, y, options)
    pairs = Pairs(*torch.ops.mikernels.top_pairs(xs, ys, *to_operator(resolved), k))
    return pairs_as_given(pairs, x, y)


@overload
def pairs_above(
    x: Tensor,
    threshold: float,
    y: Samples | None = None,
    *,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Pairs: ...


@overload
def pairs_above(
    x: Samples,
    threshold: float,
    y: Samples | None = None,
    *,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Any: ...


@shows_options()
def pairs_above(
    x: Samples,
    threshold: float,
    y: Samples | None = None,
    *,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Any:
    """Find every pair whose mutual information exceeds `threshold` nats, without building the N x N matrix.

    Arguments, results and errors are those of `top_pairs`. Memory grows with the number of pairs found.
    """
    if process_group is not None:
        ranks = Ranks(process_group)
        with ranks.together():
            return pairs_as_given(ops.above(*prepare(x, y, options), _nats(threshold), ranks), x, y)
    threshold = _nats(threshold)
    xs, ys, resolved = prepare(x, y, options)
    if xs.device.type == "meta":  # the number of pairs depends on the values
        refuse_meta("x")
    pairs = Pairs(*torch.ops.mikernels.pairs_above(xs, ys, *to_operator(resolved), threshold))
    return pairs_as_given(pairs, x, y)


def _place(out: Any, x: Tensor, y: Tensor | None) -> Tensor:
    """`out` as a tensor of the same memory, if the matrix can be written to it."""
    shape, kind = (x.shape[1], (x if y is None else y).shape[1]), type(out).__name__
    if not isinstance(out, Tensor) and getattr(getattr(out, "flags", None), "writeable", False):
        given = out
        out = to_tensor(out, "out")
        if given.size and out.data_ptr() != given.ctypes.data:  # a copy
            kind = f"a {kind} of strides or byte order that torch does not have"
            out = None
    if not isinstance(out, Tensor):
        raise ValueError(f"out: expected a tensor or a writable NumPy array, got {kind}")
    if out.shape != shape or out.dtype != torch.float32 or out.device != x.device:
        raise ValueError(
            f"out: expected shape {list(shape)} in torch.float32 on {x.device}, got shape {list(out.shape)} in "
            f"{out.dtype} on {out.device}"
        )
    # Here inference mode is off, and a tensor from it cannot be written to. `torch.compile` cannot ask.
    if not torch.compiler.is_compiling() and out.is_inference():
        raise ValueError(
            "out: expected a tensor that was made outside of torch.inference_mode(), got one made inside it"
        )
    return out.detach()


def _number_of_pairs(k: object) -> int:
    return min(positive(k, "k"), LARGEST)


def _nats(threshold: object) -> float:
    return real(threshold, "threshold", "a number of nats")


def prepare(x: Samples, y: Samples | None, options: Options) -> tuple[Tensor, Tensor | None, Options]:
    """Inputs on their device and resolved options, without a look at the values of the samples."""
    options = plain(options)
    xs = as_samples(x, "x", options.get("device"))
    if y is None and xs.shape[1] < 2:
        raise SamplesValueError(
            f"x: expected at least 2 variables (columns) to pair, got shape {list(xs.shape)}"
        )
    resolved = resolve(options, xs.shape[0])
    check_order(x, y, "y")
    ys = None if y is None else as_samples(y, "y", xs.device)
    if ys is not None and ys.shape[0] != xs.shape[0]:
        raise SamplesValueError(f"y: expected as many samples as in x ({xs.shape[0]}), got {ys.shape[0]}")
    return xs, ys, resolved
