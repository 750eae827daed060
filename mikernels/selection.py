"""Choose few variables that together tell most about a target.

`mrmr` chooses the most relevant variable, then repeatedly the one whose relevance exceeds what it shares with the
chosen ones by most. `jmi` also sees variables that tell more together than alone, for a target that is a label. Both
need the mutual information of all variables with one more variable at each step, and never the N x N matrix.

`mutual_information` makes no joint table of three variables. The joint information of two variables about a label y
follows from pairs alone, though, by the chain rule,

    I(a, b; y) = I(a; y) + I(b; y) - I(a; b) + I(a; b | y),    I(a; b | y) = sum_c P(y = c) I(a; b | y = c)

where the last is the mutual information among the samples of each class. A continuous target has no classes: use
`mrmr`.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from mikernels.arrays import Samples
from mikernels.atoms import ATOM_SHARE, least_atom
from mikernels.engine import choose_implementation, estimate, problem_of, transformed
from mikernels.frames import check_order
from mikernels.isolation import isolated
from mikernels.numbers import positive
from mikernels.options import Options, Problem, plain, resolve, shows_options
from mikernels.pairs import fill_matrix
from mikernels.transforms import Variables
from mikernels.validation import as_samples, as_tensor, read_values

LEAST_OF_CLASS = 9
"""Samples. With 8, estimates with the default options hardly grow with the dependence."""


class Selection(NamedTuple):
    """Chosen variables, the first choice first.

    Attributes:
        features: `[k]` int64, columns of x.
        scores: `[k]` float32, nats, what each scored when it was chosen.
        relevance: `[N]` float32, nats, the mutual information of every column with the target.
    """

    features: Tensor
    scores: Tensor
    relevance: Tensor


@isolated()
@shows_options(calibrate=True)
def mrmr(x: Samples, y: Samples, k: int, **options: Unpack[Options]) -> Selection:
    """Choose k columns by minimal redundancy and maximal relevance.

    Each step chooses the column f with the largest `I(f; y) - mean_s I(f; s)` over the chosen columns s; of equal ones
    the first.

    Args:
        x, options: see `mikernels.mutual_information`. By default estimates are calibrated under the rank transform,
            so that a label and continuous variables are compared on one scale.
        y: `[M]` or `[M, 1]` target, continuous or a label in numbers. A label of more values than the estimator has
            cells for (16 with the defaults; a value counts from 2 % of the samples on) is taken as numbers in their
            order, with a warning if its values are 0, 1, 2, ... or 1, 2, 3, ..., as codes of classes are.
        k: number of columns to choose, at least 1; all if there are fewer.

    Returns:
        Columns, scores and the relevance of all columns, on the device.

    Raises:
        TypeError, ValueError: see `mikernels.mutual_information`; ValueError for k < 1 or more than one target.

    Cost: k - 1 rows of the matrix of x. For k of more than about N / 10, `mrmr_from_matrix` is faster where the matrix
    fits in memory.

    Source: H. Peng, F. Long, C. Ding, Feature selection based on mutual information, IEEE Trans. Pattern Anal. Mach.
    Intell. 27 (2005), DOI 10.1109/TPAMI.2005.159.
    """
    k = positive(k, "k")
    columns, target, options = _prepare(x, y, options)
    if _looks_like_codes(target) and (fault := _without_cells(target, options)) is not None:
        message = f"{fault}; its values are taken as numbers in their order"
        warnings.warn(message, stacklevel=3)  # 2 is the decorator
    whole = _Estimates(columns, options)
    return _greedy(whole.with_target(target), whole.with_column, k)


def mrmr_from_matrix(mi: Samples, relevance: Samples, k: int) -> Selection:
    """As `mrmr`, from a matrix that is already there.

    Args:
        mi: `[N, N]` mutual information of the variables, whose diagonal is ignored.
        relevance: `[N]` or `[N, 1]` their mutual information with the target.
        k: number of variables to choose, at least 1; all if there are fewer.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: a wrong shape, NaN or infinite values off the diagonal, or k < 1.
    """
    k = positive(k, "k")
    relevant = as_tensor(relevance, "relevance").float()
    relevant = relevant[:, 0] if relevant.ndim == 2 and relevant.shape[1] == 1 else relevant
    matrix = as_tensor(mi, "mi").to(relevant.device, torch.float32)
    if relevant.ndim != 1 or not len(relevant):
        raise ValueError(f"relevance: expected one value for each variable, got shape {list(relevant.shape)}")
    check_order(mi, relevance, "relevance")
    n = len(relevant)
    if matrix.shape != (n, n):
        raise ValueError(f"mi: expected shape {[n, n]} as in relevance, got {list(matrix.shape)}")
    own = torch.eye(n, dtype=torch.bool, device=matrix.device)
    for name, values in (("relevance", relevant), ("mi", matrix.masked_fill(own, 0.0))):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinite ones")
    return _greedy(relevant, lambda s: matrix[:, s], k)


@isolated()
@shows_options(calibrate=True)
def jmi(x: Samples, y: Samples, k: int, **options: Unpack[Options]) -> Selection:
    """Choose k columns by joint mutual information with a label, which sees columns that tell more together.

    The first is the most relevant column. Each step then chooses the column f with the largest mean of `I(f, s; y)`
    over the chosen columns s; of equal ones the first. See the top of this module for what is computed. Estimates from
    the samples of a class are noisier than those from all samples, and smoothing flattens sharp dependence within a
    class, so scores are for ordering.

    Args:
        x, k, options: see `mrmr`.
        y: `[M]` or `[M, 1]` label in numbers, with at least 9 samples of each value.

    Returns:
        See `mrmr`; the score of all but the first is a mean of joint information.

    Raises:
        TypeError, ValueError: see `mrmr`; ValueError for a target with a value of fewer than 9 samples, or with more
            values than the estimator has cells for: it would take them as numbers in their order.

    Source: H. H. Yang, J. Moody, Data visualization and feature selection: new algorithms for nongaussian data, NIPS
    1999. In pairs: G. Brown et al., Conditional likelihood maximisation, J. Mach. Learn. Res. 13 (2012), eq. 26.
    """
    k = positive(k, "k")
    columns, target, options = _prepare(x, y, options)
    values, label, counts = target.unique(return_inverse=True, return_counts=True)
    rarest = int(counts.argmin())
    if int(counts[rarest]) < LEAST_OF_CLASS:
        raise ValueError(
            f"y: expected a label with at least {LEAST_OF_CLASS} samples of each value, got {int(counts[rarest])} of "
            f"{values[rarest].item():g}; use mrmr for a continuous target"
        )
    check_label(target, options)
    whole = _Estimates(columns, options)
    relevance = whole.with_target(target)
    classes = [_Estimates(columns[label.flatten() == c], options) for c in range(len(values))]
    shares = (counts / len(target)).tolist()

    def less_together(s: int) -> Tensor:
        within = sum(share * part.with_column(s) for share, part in zip(shares, classes, strict=True))
        return whole.with_column(s) - within - relevance[s]

    return _greedy(relevance, less_together, k)


@isolated()
def check_label(y: Samples, options: Options) -> None:
    """Raise ValueError if some values of the label `y [M]` would have no cell of their own, but be numbers in their
    order."""
    fault = _without_cells(read_values(as_samples(y, "y", options.get("device")), "y"), options)
    if fault is not None:
        raise ValueError(fault)


def _without_cells(label: Tensor, options: Options) -> str | None:
    """Why some values of `label [M, 1]` would have no cell of their own; None if all have one."""
    resolved = resolve(options, len(label))
    counts = label.unique(return_counts=True)[1]
    if resolved["transform"] != "rank":
        if len(counts) <= 2:
            return None
        return (
            f"transform: expected 'rank' for a label of {len(counts)} values, got {resolved['transform']!r}, which "
            f"takes them as numbers in their order"
        )
    problem = Problem(resolved["estimator"], resolved["nodes"], 1.0)
    read = transformed(label, problem, resolved)
    if not read.ranked or float(read.continuous_share) == 0:
        return None
    least = least_atom(len(label))
    rare = int((counts < least).sum())
    if len(counts) - rare > problem.most_atoms:
        return (
            f"y: expected a label of at most {problem.most_atoms} values, for which "
            f"estimator={resolved['estimator']!r} has cells, got {len(counts)}; merge some, or pass "
            f"estimator='adaptive', which has a cell for every value of {ATOM_SHARE:.0%} of the samples"
        )
    return (
        f"y: expected a label whose values have at least {least} samples each ({ATOM_SHARE:.0%} of all), got {rare} "
        f"of {len(counts)} that have fewer; merge rare values into one"
    )


def _looks_like_codes(target: Tensor) -> bool:
    """Whether the values of `target [M, 1]` are 0, 1, 2, ... or 1, 2, 3, ..., and repeat."""
    values = target.unique()
    start = values[0]
    codes = torch.arange(len(values), device=values.device, dtype=values.dtype) + start
    return (
        float(start) in (0.0, 1.0)
        and len(target) >= LEAST_OF_CLASS * len(values)
        and bool((values == codes).all())
    )


class _Estimates:
    """Mutual information of the columns of `x [M, N]`, with one variable at a time."""

    def __init__(self, x: Tensor, options: Options) -> None:
        # The default bandwidth depends on the number of samples, which is that of a class for some.
        self._options = resolve(options, len(x))
        self._problem = problem_of(x, None, self._options)
        self._columns = transformed(x, self._problem, self._options)

    def with_column(self, column: int) -> Tensor:
        """`[N]` nats, with one of the columns."""
        return self._with(self._columns[column : column + 1])

    def with_target(self, y: Tensor) -> Tensor:
        """`[N]` nats, with `y [M, 1]`."""
        return self._with(transformed(y, self._problem, self._options, second=True))

    def _with(self, variable: Variables) -> Tensor:
        out = torch.empty(len(self._columns), 1, dtype=torch.float32, device=variable.data.device)
        blocks = estimate(self._columns, variable, self._problem, self._options)
        return fill_matrix(blocks, out, symmetric=False)[:, 0]


def _greedy(relevance: Tensor, penalty: Callable[[int], Tensor], k: int) -> Selection:
    """Repeatedly the variable with the largest relevance minus the mean penalty for the chosen ones."""
    k = min(k, len(relevance))
    chosen: list[int] = []
    scores = relevance.new_empty(k)
    total = torch.zeros_like(relevance)
    for step in range(k):
        score = relevance - total / max(1, step)
        score[chosen] = -torch.inf
        best = int((score == score.max()).nonzero()[0])
        scores[step] = score[best]
        chosen.append(best)
        if step + 1 < k:
            total += penalty(best)
    return Selection(torch.tensor(chosen, device=relevance.device), scores, relevance)


def _prepare(x: Samples, y: Samples, options: Options) -> tuple[Tensor, Tensor, Options]:
    """Samples `[M, N]` and `[M, 1]` with values that can be used, on their device, and options."""
    options = plain(options)
    options.setdefault("calibrate", options.get("transform", "rank") == "rank")
    check_order(x, y, "y")
    columns = as_samples(x, "x", options.get("device"))
    target = as_samples(y, "y", columns.device)
    if target.shape != (len(columns), 1):
        raise ValueError(
            f"y: expected one target, with as many samples as x ({len(columns)}), got shape {list(target.shape)}"
        )
    resolved = resolve(options, len(columns))
    choose_implementation(resolved, columns.device)
    check = resolved["check_finite"]
    return read_values(columns, "x", check=check), read_values(target, "y", check=check), options
