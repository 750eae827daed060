"""From mutual information to a network: which pairs stand out, and which only pass on what others share.

`clr` scores a pair against all other pairs of its two variables. `aracne` removes the weakest pair of every triangle,
by the data-processing inequality: if i acts on k through j, then I(i; k) <= min(I(i; j), I(j; k)).

A matrix has a row for each regulator and a column for each target. By default every variable is both. Where only some
are regulators, such as the transcription factors among genes, `regulators` says which columns the rows are:

    mi = mutual_information(x[:, regulators], x)
    network = aracne(clr(mi, regulators), regulators)
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from mikernels.arrays import Samples, shaped_as_given
from mikernels.numbers import real
from mikernels.pairs import Block, Pairs, fill_matrix
from mikernels.tiling import cut, tiles
from mikernels.validation import as_tensor

Columns = Tensor | Sequence[int]

CPU_TILE = 384
GPU_TILE = 4096
"""Side of a tile of the matrix: the tiles of a step fit the cache of a CPU core, and one occupies a GPU."""
PATHS = 2**21
"""Paths of two pairs that are looked at together: about 150 MB."""
NOT_FINITE = "mi: expected finite values, got NaN or infinite ones"
ROUNDING = 1e-12
"""Of the mean square: less variance than this is none."""


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
    row_mean, row_deviation = _background(links, 1)
    mean, deviation = (row_mean, row_deviation) if links.symmetric else _background(links, 0)
    score = torch.empty_like(weight)
    for rows in cut(len(weight), max(1, 2**22 // weight.shape[1])):
        of_row = (weight[rows] - row_mean[rows, None]).div_(row_deviation[rows, None]).clamp_(min=0)
        of_column = (weight[rows] - mean).div_(deviation).clamp_(min=0)
        torch.hypot(of_row, of_column, out=score[rows])
    return shaped_as_given(links.without_self(score), mi)


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
            Or the pairs of `pairs_above` or `top_pairs`, where all other pairs count as 0: then time and memory depend
            on the number of pairs, and the matrix is never built.
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
        return _direct_pairs(mi, regulators, share)
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
        columns = _read_columns(regulators, weight.device)
        if len(columns) != len(weight) or int(columns.max()) >= weight.shape[1]:
            raise ValueError(
                f"regulators: expected the column, below {weight.shape[1]}, of each of the {len(weight)} rows, got "
                f"{len(columns)} up to {int(columns.max())}"
            )
    elif required:
        raise ValueError(
            f"mi: expected a symmetric matrix, got one of shape {list(weight.shape)} that is not; "
            f"pass regulators=, the column of each row's own variable"
        )
    links = _Links(weight, columns, symmetric)
    _finite(links.without_self(weight))
    return links


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


def _background(links: _Links, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation along a dimension, without the variable itself; infinite deviation where all are
    equal, which makes every score 0."""
    weight = links.weight
    number = torch.full(
        (weight.shape[1 - dim],), float(weight.shape[dim]), dtype=torch.float64, device=weight.device
    )
    if links.regulators is not None:
        number[slice(None) if dim == 1 else links.regulators] -= 1
    number.clamp_(min=1)
    mean = weight.sum(dim, dtype=torch.float64) / number
    square = torch.linalg.vector_norm(weight, dim=dim, dtype=torch.float64).square() / number
    variance = square - mean.square()
    deviation = torch.where(variance > ROUNDING * square, variance.sqrt(), torch.inf)
    return mean.to(weight.dtype), deviation.to(weight.dtype)
