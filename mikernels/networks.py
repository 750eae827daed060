"""From mutual information to a network: which pairs stand out, and which only pass on what others share.

`clr` scores a pair against all other pairs of its two variables, and `clr_pairs` finds the best ones of samples whose
matrix does not fit in memory. `aracne` removes the weakest pair of every triangle,
by the data-processing inequality: if i acts on k through j, then I(i; k) <= min(I(i; j), I(j; k)).

A matrix has a row for each regulator and a column for each target. By default every variable is both. Where only some
are regulators, such as the transcription factors among genes, `regulators` says which columns the rows are:

    mi = mutual_information(x[:, regulators], x)
    network = aracne(clr(mi, regulators), regulators)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack, overload

import torch
from torch import Tensor

from mikernels.api import prepare
from mikernels.arrays import Samples, pairs_as_given, shaped_as_given, to_tensor
from mikernels.context import Axes, context_scores
from mikernels.engine import estimate, ready
from mikernels.isolation import isolated
from mikernels.numbers import positive, real
from mikernels.ops import check_same, of_all
from mikernels.options import Options, shows_options
from mikernels.pairs import Block, Pairs, best_pairs, fill_matrix, pairs_over
from mikernels.ranks import Ranks, checksum
from mikernels.tiling import tiles
from mikernels.validation import as_tensor

Columns = Tensor | Sequence[int]

CPU_TILE = 384
GPU_TILE = 4096
"""Side of a tile of the matrix: the tiles of a step fit the cache of a CPU core, and one occupies a GPU."""
SCORE_TILE = 2048
"""Side of a tile that `clr` scores, with temporaries of about 100 MB."""
PATHS = 2**21
"""Paths of two pairs that are looked at together: about 150 MB."""
NOT_FINITE = "mi: expected finite values, got NaN or infinite ones"


class _Links(NamedTuple):
    """A matrix of links.

    Attributes:
        weight: `[N, K]` floating-point, 0 where a row and a column are the same variable.
        regulators: `[N]` int64, the column of each row; None if no row is a column.
        symmetric: whether every variable is both a row and a column, in the same order.
    """

    weight: Tensor
    regulators: Tensor | None
    symmetric: bool

    def without_self(self, matrix: Tensor) -> Tensor:
        """`matrix [N, K]` with 0 where a row and a column are the same variable, in place."""
        if self.regulators is not None:
            matrix[torch.arange(len(matrix), device=matrix.device), self.regulators] = 0.0
        return matrix


def clr(mi: Samples, regulators: Columns | None = None) -> Any:
    """Score each pair by how far it stands out from the other pairs of its two variables (context likelihood).

    The score of (i, k) is `sqrt(z_i^2 + z_k^2)`, where z_i is how many standard deviations `I(i; k)` lies above the
    mean of all pairs of i, or 0 if it lies below. It removes what hubs and noisy variables add to all of their pairs.
    `clr_pairs` gives the best scores of a matrix that does not fit in memory.

    Args:
        mi: `[N, K]` mutual information (or any other weight of links). A symmetric matrix is taken as that of one set
            of variables, whose diagonal is ignored. Any other matrix has regulators as rows and targets as columns.
        regulators: `[N]` integers, the column of each row's own variable, if the targets include the regulators.

    Returns:
        `[N, K]` of the kind of `mi`, with its labels, in its precision (at least float32), standard deviations; 0 for a
        variable with itself.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: a wrong shape, NaN or infinite values, or impossible regulators.

    Source: J. J. Faith et al., Large-scale mapping and validation of Escherichia coli transcriptional regulation from a
    compendium of expression profiles, PLoS Biol. 5 (2007), DOI 10.1371/journal.pbio.0050008.
    """
    links = _read(mi, regulators, required=False)
    weight = links.weight
    n, k = weight.shape
    if largest := float(torch.linalg.vector_norm(weight, torch.inf)):
        weight /= largest  # squares of any numbers are then numbers
    axes = Axes(n, k, None if links.symmetric else links.regulators, links.symmetric)

    def blocks() -> Iterator[Block]:
        for rows, cols in tiles(n, k, SCORE_TILE, upper=links.symmetric):
            yield Block(rows.start, cols.start, weight[rows, cols])

    scores = context_scores(blocks, axes, weight.device, dtype=weight.dtype)
    score = fill_matrix(scores, torch.empty_like(weight), symmetric=links.symmetric)
    return shaped_as_given(links.without_self(score), mi)


@overload
def clr_pairs(
    x: Tensor,
    y: Samples | None = None,
    *,
    k: int | None = None,
    threshold: float | None = None,
    regulators: Columns | None = None,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Pairs: ...


@overload
def clr_pairs(
    x: Samples,
    y: Samples | None = None,
    *,
    k: int | None = None,
    threshold: float | None = None,
    regulators: Columns | None = None,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Any: ...


@isolated()
@shows_options()
def clr_pairs(
    x: Samples,
    y: Samples | None = None,
    *,
    k: int | None = None,
    threshold: float | None = None,
    regulators: Columns | None = None,
    process_group: Any = None,
    **options: Unpack[Options],
) -> Any:
    """Find the pairs with the highest scores of `clr`, without building the N x N matrix.

    The mutual information of all pairs is computed twice: for the mean and the deviation of each variable, and for the
    scores. Memory is that of `top_pairs` or `pairs_above`, and some 50 bytes for each variable.

    Args:
        x, y, process_group, options: see `mikernels.mutual_information`. With `y`, columns of x are the regulators and
            columns of y the targets.
        k: number of pairs, at least 1; all pairs if there are fewer.
        threshold: in place of k, for every pair with a score above it, in standard deviations.
        regulators: `[N]` integers, with `y`: the column of y that is each column of x, if the targets include the
            regulators. Those are no pairs.

    Returns:
        See `mikernels.top_pairs`, with scores in place of nats. They are those of `clr` but for rounding.

    Raises:
        TypeError, ValueError: see `mikernels.mutual_information` and `clr`; ValueError unless one of `k` and
            `threshold` is given.

    Source: see `clr`.
    """
    ranks = Ranks(process_group)
    with ranks.together():
        if (k is None) == (threshold is None):
            raise ValueError(f"k, threshold: expected one of them, got k={k!r} and threshold={threshold!r}")
        collect: Callable[[Iterable[Block]], Pairs]
        if k is not None:
            k = positive(k, "k")
            collect = partial(best_pairs, k=k, symmetric=y is None)
        else:
            threshold = real(threshold, "threshold", "a number of standard deviations")
            collect = partial(pairs_over, threshold=threshold, symmetric=y is None)
        xs, ys, resolved = prepare(x, y, options)
        axes = _axes(xs, ys, regulators)
        own = None if axes.own is None else checksum(axes.own)
        check_same(xs, ys, resolved | {"k": k, "threshold": threshold, "regulators": own}, ranks)
        blocks = partial(estimate, *ready(xs, ys, resolved), resolved, ranks)
        scores = context_scores(blocks, axes, xs.device, ranks)
        pairs = of_all(collect, scores, xs.device, ranks, k)
        are_two = pairs.mi > -torch.inf
        return pairs_as_given(Pairs(*(t[are_two] for t in pairs)), x, y)


def _axes(x: Tensor, y: Tensor | None, regulators: Columns | None) -> Axes:
    """Of the matrix of `x` with `y`, or with itself."""
    n = x.shape[1]
    if y is None:
        if regulators is not None:
            raise ValueError("regulators: expected None without y, got some; pass y, the targets")
        return Axes(n, n, None, symmetric=True)
    k = y.shape[1]
    columns = None if regulators is None else _columns_of(regulators, x.device, n, k)
    return Axes(n, k, columns, symmetric=False)


@overload
def aracne(mi: Pairs, regulators: Columns | None = None, *, tolerance: float = 0.0) -> Pairs: ...


@overload
def aracne(mi: Samples, regulators: Columns | None = None, *, tolerance: float = 0.0) -> Any: ...


def aracne(mi: Samples | Pairs, regulators: Columns | None = None, *, tolerance: float = 0.0) -> Any:
    """Remove every pair that is weaker than both other pairs of a triangle: an indirect link.

    The pair (i, k) is removed if some regulator j has `I(i; k) < (1 - tolerance) min(I(i; j), I(j; k))`. All triangles
    are judged on the values that are given, so their order does not matter. Set values that are not significant to 0
    first (`mikernels.Null`): a pair of 0 removes no other.

    Args:
        mi: `[N, K]` mutual information, or scores of `clr`; values below 0 count as 0, and the diagonal is ignored.
            Or the `Pairs` of `pairs_above`, `top_pairs` or `clr_pairs`, where all other pairs count as 0: then time and
            memory depend on the number of pairs, and the matrix is never built.
        regulators: `[N]` integers, the column of each row's own variable (for pairs, of each variable in `first`).
            By default every variable is a regulator: the matrix is symmetric, or the pairs are within one set.
            If regulators and targets are different variables, put the regulators in front of the targets and pass
            `range(N)`.
        tolerance: from 0 to 1. Larger values keep more: chance alone makes one pair of a triangle the weakest, and the
            authors advise 0 to 0.15.

    Returns:
        `mi`, of its kind and with its labels, with 0 in place of what was removed and for a variable with itself. Of
        pairs, those that are kept, in their order.

    Raises:
        TypeError: not an array of real numbers.
        ValueError: a wrong shape, NaN or infinite values, impossible regulators, or a tolerance out of its range.

    Cost: `N^2 K` comparisons of a matrix, half for a symmetric one, in a workspace of a few tiles.

    Source: A. A. Margolin et al., ARACNE: an algorithm for the reconstruction of gene regulatory networks in a
    mammalian cellular context, BMC Bioinformatics 7 (2006), DOI 10.1186/1471-2105-7-S1-S7. With regulators: A. Lachmann
    et al., ARACNe-AP, Bioinformatics 32 (2016), DOI 10.1093/bioinformatics/btw216.
    """
    share = 1 - real(tolerance, "tolerance", "a number from 0 to 1")
    if not 0 <= share <= 1:
        raise ValueError(f"tolerance: expected a number from 0 to 1, got {tolerance!r}")
    if isinstance(mi, Pairs):
        pairs = Pairs(*(to_tensor(t, name) for t, name in zip(mi, Pairs._fields, strict=True)))
        return pairs_as_given(_direct_pairs(pairs, regulators, share), mi.mi)
    links = _read(mi, regulators, required=True)
    links.weight.clamp_(min=0)
    direct = torch.empty_like(links.weight)
    return shaped_as_given(fill_matrix(_direct_links(links, share), direct, symmetric=links.symmetric), mi)


def _direct_links(links: _Links, share: float) -> Iterator[Block]:
    """Tiles of the matrix with 0 in place of indirect links, on or above the diagonal if it is symmetric."""
    weight = links.weight
    among = weight[:, links.regulators]  # [N, N], of regulators with each other
    size = CPU_TILE if weight.device.type == "cpu" else GPU_TILE
    for rows, cols in tiles(len(weight), weight.shape[1], size, upper=links.symmetric):
        direct = weight[rows, cols]
        left, right = among[rows].t().contiguous(), weight[:, cols]  # [N, rows], [N, cols]
        bound, path = torch.zeros_like(direct), torch.empty_like(direct)
        # Most regulators have no link with any row or column of the tile once insignificant ones are 0.
        for j in ((left > 0).any(1) & (right > 0).any(1)).nonzero().flatten().tolist():
            torch.minimum(left[j, :, None], right[j], out=path)
            torch.maximum(bound, path, out=bound)
        yield Block(rows.start, cols.start, torch.where(direct < share * bound, 0.0, direct))


def _direct_pairs(pairs: Pairs, regulators: Columns | None, share: float) -> Pairs:
    """The pairs that are no indirect link, looking only at paths of pairs that are there."""
    first, second, mi = pairs
    if len(mi) == 0:
        return pairs
    if first.is_floating_point() or second.is_floating_point():
        raise ValueError(
            f"first, second: expected numbers of variables, integers, got {first.dtype} and {second.dtype}"
        )
    first, second = first.long(), second.long()  # products of them are keys
    weight = _finite(mi).clamp(min=0)
    if regulators is None:  # a link in both directions
        source, target, values = torch.cat([first, second]), torch.cat([second, first]), weight.repeat(2)
        inner = source != target
    else:
        columns = _read_columns(regulators, mi.device)
        if len(columns) <= int(first.max()):
            raise ValueError(
                f"regulators: expected one for each variable in `first`, at least {int(first.max()) + 1}, "
                f"got {len(columns)}"
            )
        source, target, values = columns[first], second, weight
        inner = (source != target) & torch.isin(target, columns)
    n = int(torch.maximum(source.max(), target.max())) + 1
    key, order = (source * n + target).sort()
    values, inner = values[order], inner[order]
    hop, hop_value = key[inner], values[inner]  # links to a regulator, the first of a path
    begin, end = source[: len(mi)], target[: len(mi)]
    itself = begin == end
    if regulators is None:  # paths from either end are the same: from the one with fewer
        links = source.bincount(minlength=n)
        fewer = links[end] < links[begin]
        begin, end = torch.where(fewer, end, begin), torch.where(fewer, begin, end)
    start = torch.searchsorted(hop, begin * n)
    count = torch.searchsorted(hop, (begin + 1) * n) - start
    bound = torch.zeros_like(weight)
    for part in _runs(count, PATHS):
        of = torch.arange(len(bound[part]), device=mi.device).repeat_interleave(count[part])
        place = (
            torch.arange(len(of), device=mi.device) + (start[part] - count[part].cumsum(0) + count[part])[of]
        )
        wanted = hop[place] % n * n + end[part][of]
        found = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
        path = torch.where(key[found] == wanted, hop_value[place].minimum(values[found]), 0.0)
        bound[part].scatter_reduce_(0, of, path, "amax")
    kept = (weight >= share * bound) & ~itself
    return Pairs(*(t[kept] for t in pairs))


def _runs(count: Tensor, most: int) -> Iterator[slice]:
    """Slices whose counts add up to about `most`, or less than that and one more."""
    total = count.cumsum(0)
    start = 0
    while start < len(count):
        before = 0 if start == 0 else int(total[start - 1])
        stop = max(start + 1, int(torch.searchsorted(total, before + most, right=True)))
        yield slice(start, stop)
        start = stop


def _read(mi: Samples, regulators: Columns | None, *, required: bool) -> _Links:
    """A copy of the matrix, checked, and what its rows are."""
    weight = as_tensor(mi, "mi")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"mi: expected a matrix [regulators, targets], got shape {list(weight.shape)}")
    weight = weight.to(
        torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float64,
        copy=True,
    )
    if bool(weight.isnan().any()):
        raise ValueError(NOT_FINITE)
    symmetric = regulators is None and torch.equal(weight, weight.t())
    columns = None
    if symmetric:
        columns = torch.arange(len(weight), device=weight.device)
    elif regulators is not None:
        columns = _columns_of(regulators, weight.device, *weight.shape)
    elif required:
        raise ValueError(
            f"mi: expected a symmetric matrix, got one of shape {list(weight.shape)} that is not; "
            f"pass regulators=, the column of each row's own variable"
        )
    links = _Links(weight, columns, symmetric)
    _finite(links.without_self(weight))
    return links


def _columns_of(regulators: Columns, device: torch.device, n_rows: int, n_cols: int) -> Tensor:
    columns = _read_columns(regulators, device)
    if len(columns) != n_rows or int(columns.max()) >= n_cols:
        raise ValueError(
            f"regulators: expected the column, below {n_cols}, of each of the {n_rows} rows, got "
            f"{len(columns)} up to {int(columns.max())}"
        )
    return columns


def _read_columns(regulators: Columns, device: torch.device) -> Tensor:
    columns = torch.as_tensor(
        list(regulators) if isinstance(regulators, range) else regulators, device=device
    )
    if columns.ndim != 1 or columns.is_floating_point() or columns.dtype == torch.bool or not len(columns):
        raise ValueError(
            f"regulators: expected column numbers, got {columns.dtype} of shape {list(columns.shape)}"
        )
    if int(columns.min()) < 0 or len(columns.unique()) < len(columns):
        raise ValueError(
            "regulators: expected different column numbers from 0 on, got negative or repeated ones"
        )
    return columns.long()


def _finite(weight: Tensor) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(NOT_FINITE)
    return weight
