"""The ladder of bandwidths of many pairs at a time: joint histograms, then a pair of matrix products for each rung.

A cell of an atom (`mikernels.atoms`) follows the cells of the other samples. Nothing is smoothed into or out of it.
Variables without atoms share their margins (`mikernels.tables.rungs`); others have their own.
`mikernels.reference.adaptive` has the equations.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mikernels.adaptive.extrapolation import AtomTerms, extrapolate
from mikernels.tables.rungs import CELLS, Rung, cell_of_rank, rungs
from mikernels.tiling import cut
from mikernels.transforms import Variables

LARGEST_FLOAT32_COUNT = 2**24
"""Adding 1 to it in float32 changes nothing."""


class Cells(NamedTuple):
    """Of some variables, at the finest resolution; dropping low bits gives coarser cells.

    Attributes:
        finest: `[n, M]` int64; -1 - a in atom a.
        atoms: `[n]` int64, their number; None if no variable has any.
        discrete: `[n]` bool, no sample lies outside of atoms; None if no variable has any.
    """

    finest: Tensor
    atoms: Tensor | None = None
    discrete: Tensor | None = None

    def rows(self, rows: slice | Tensor) -> "Cells":
        return Cells(*(None if t is None else t[rows] for t in self))  # type: ignore[arg-type]

    def tied(self, index: Tensor) -> Tensor:
        """Which of the variables `index [P]` have atoms: bool `[P]`."""
        if self.atoms is None:
            return torch.zeros_like(index, dtype=torch.bool)
        return self.atoms[index] > 0

    def at(self, cells: int, n_cells_of_atoms: int) -> Tensor:
        """`[n, M]` int64 cells at a resolution, followed by those of the atoms."""
        shift = (CELLS[-1] // cells).bit_length() - 1
        if not n_cells_of_atoms:
            return self.finest >> shift
        return torch.where(self.finest < 0, cells - 1 - self.finest, self.finest >> shift)


def finest_cells(variables: Variables, columns: slice = slice(None)) -> Cells:
    ranks = variables.data[columns]
    table = cell_of_rank(variables.n_samples, CELLS[-1]).to(ranks.device)
    if variables.atoms is None:
        return Cells(table[ranks])
    count, rest = (t[columns] for t in variables.atoms)
    return Cells(torch.where(ranks < 0, ranks.long(), table[ranks.clamp(min=0)]), count, rest == 0)


def estimate_pairs(x: Cells, y: Cells, row: Tensor, col: Tensor, cells: int, *, strip: int) -> Tensor:
    """Nats `[P]`, float64, of the pairs `x[row]`, `y[col]` by the ladder that starts at `cells`.

    `strip`: joint cells and samples to hold at once, but never less than one pair.
    """
    if x.atoms is None and y.atoms is None:
        return _estimate(x, y, row, col, cells, strip)
    values = torch.empty(len(row), dtype=torch.float64, device=row.device)
    tied = x.tied(row) | y.tied(col)
    for some, estimate in ((~tied, _estimate), (tied, _estimate_with_atoms)):
        values[some] = estimate(x, y, row[some], col[some], cells, strip)
    return values


def _estimate(x: Cells, y: Cells, row: Tensor, col: Tensor, cells: int, strip: int) -> Tensor:
    n_samples = x.finest.shape[1]
    ladder = rungs(n_samples, cells)
    margins = x.finest.new_tensor([rung.margin for rung in ladder], dtype=torch.float64)
    parts = [x.finest.new_empty(len(ladder), 0, dtype=torch.float64)]
    parts += _over_histograms(
        x, y, row, col, cells, 0, strip, lambda counts: log_terms(counts, ladder, n_samples)
    )
    return extrapolate(torch.cat(parts, dim=1) - margins[:, None], ladder, n_samples)


def _estimate_with_atoms(x: Cells, y: Cells, row: Tensor, col: Tensor, cells: int, strip: int) -> Tensor:
    if not len(row):
        return row.new_empty(0, dtype=torch.float64)
    n_samples = x.finest.shape[1]
    ladder = rungs(n_samples, cells)
    most = max(_most_atoms(x), _most_atoms(y))
    terms = _over_histograms(
        x, y, row, col, cells, most, strip, lambda counts: log_terms(counts, ladder, n_samples, most)
    )
    of_x, of_y = (_margins(v, cells, ladder, most) for v in (x, y))
    return _extrapolate_with_atoms(torch.cat(terms, dim=1), of_x.at(row), of_y.at(col), ladder, n_samples)


def estimate_copies(x: Cells, index: Tensor, cells: int) -> Tensor:
    """Nats `[P]`, float64, of the variables `x[index]` with copies of themselves, all of which have atoms."""
    if not len(index):
        return index.new_empty(0, dtype=torch.float64)
    n_samples = x.finest.shape[1]
    ladder = rungs(n_samples, cells)
    margins = _margins(x.rows(index), cells, ladder, _most_atoms(x))
    return _extrapolate_with_atoms(margins.of_copies, margins, margins, ladder, n_samples)


def _extrapolate_with_atoms(
    terms: Tensor, x: "Margins", y: "Margins", ladder: tuple[Rung, ...], n_samples: int
) -> Tensor:
    """Nats `[P]` from the log terms `[rungs + 1, P]` of pairs and the margins of their variables."""
    margins = x.psi + y.psi - math.log(n_samples - 1)
    excess = (x.log_floor + y.log_floor + math.log(math.sqrt(1 / 12) / n_samples)).exp().log1p()
    ratios = terms - margins
    return extrapolate(ratios[:-1], ladder, n_samples, AtomTerms(excess, margins[:-1], ratios[-1]))


def _most_atoms(variables: Cells) -> int:
    return 0 if variables.atoms is None else int(variables.atoms.max())


def _over_histograms(
    x: Cells,
    y: Cells,
    row: Tensor,
    col: Tensor,
    cells: int,
    n_atoms: int,
    strip: int,
    function: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """A function of the joint histograms `[P, W, W]` of a few pairs at a time."""
    width = cells + n_atoms
    left, right = x.at(cells, n_atoms) * width, y.at(cells, n_atoms)
    found = []
    for pairs in cut(len(row), max(1, strip // (width**2 + left.shape[1]))):
        places = left.index_select(0, row[pairs]).add_(right.index_select(0, col[pairs]))
        found.append(function(joint_counts(places, width)))
    return found


def joint_counts(places: Tensor, cells: int) -> Tensor:
    """`[P, G, G]` float32 histograms of joint places `[P, M]`, each `G a + b`."""
    exact = torch.float32 if places.shape[1] <= LARGEST_FLOAT32_COUNT else torch.float64
    counts = torch.zeros(len(places), cells**2, dtype=exact, device=places.device)
    counts.scatter_add_(1, places, counts.new_ones(()).expand_as(places))  # exact in any order
    return counts.view(-1, cells, cells).float()


def log_terms(counts: Tensor, ladder: tuple[Rung, ...], n_samples: int, n_atoms: int = 0) -> Tensor:
    """`1/M sum_i psi` on every rung: `[rungs, P]` float64 from counts `[P, W, W]` (float32).

    With atoms there is one more row, for a single cell of all samples outside of atoms.
    """
    sums = []
    for rung in ladder:
        if rung.cells < counts.shape[1] - n_atoms:
            counts = _halved(_halved(counts, 1, n_atoms), 2, n_atoms)
        kernel, width = rung.kernel.to(counts.device, torch.float32), counts.shape[1]
        if rung.cells < 256:
            if n_atoms:
                kernel = torch.block_diag(
                    kernel, torch.eye(n_atoms, dtype=kernel.dtype, device=kernel.device)
                )
            f = kernel @ (counts.view(-1, width) @ kernel).view(-1, width, width)
        else:
            f = _smoothed(_smoothed(counts, kernel).transpose(1, 2), kernel).transpose(1, 2)
        sums.append(_sum_of_psi(counts, f, _own_counts(counts.shape[1], n_atoms, counts.device)))
    if n_atoms:
        for axis in (1, 2):
            parts = counts.split([counts.shape[axis] - n_atoms, n_atoms], axis)
            counts = torch.cat([parts[0].sum(axis, keepdim=True), parts[1]], axis)
        sums.append(_sum_of_psi(counts, counts.clone(), 1.0))
    return torch.stack(sums) / (2 * n_samples)


def _sum_of_psi(counts: Tensor, f: Tensor, own: Tensor | float) -> Tensor:
    """`2 sum counts psi(f - own + 1)`, float64 `[P]`; overwrites f."""
    logs = f.sub_(own).add_(0.5) if isinstance(own, Tensor) else f.sub_(own - 0.5)
    logs = logs.square_().add_(1 / 12).log_().mul_(counts)
    # torch's order of summation depends on the shape; in float64, rounding to float32 hides the difference.
    return logs.sum(2).sum(1, dtype=torch.float64)


def _own_counts(width: int, n_atoms: int, device: torch.device) -> Tensor | float:
    """What a sample counts for itself in f, by cell `[W, W]`."""
    if not n_atoms:
        return 2.0
    own = torch.full((width,), math.sqrt(2), dtype=torch.float32, device=device)
    own[width - n_atoms :] = 1.0
    return own[:, None] * own


def _halved(counts: Tensor, axis: int, n_atoms: int) -> Tensor:
    """Sums of two neighboring cells along an axis, but of no atoms."""
    size = counts.shape[axis] - n_atoms
    cells = counts.narrow(axis, 0, size).unflatten(axis, (size // 2, 2))
    sums = cells.select(axis + 1, 0) + cells.select(axis + 1, 1)
    return torch.cat([sums, counts.narrow(axis, size, n_atoms)], axis) if n_atoms else sums


def _smoothed(values: Tensor, kernel: Tensor) -> Tensor:
    """`values [..., W]` smoothed along the last axis by a large kernel, the cells of atoms as they are."""
    cells = len(kernel)
    smooth = _banded_product(values[..., :cells], kernel)
    return torch.cat([smooth, values[..., cells:]], -1) if values.shape[-1] > cells else smooth


def _banded_product(values: Tensor, kernel: Tensor) -> Tensor:
    """`values @ kernel` in blocks of 64 columns; a kernel is below 1e-31 beyond 16 cells on either side."""
    blocks = torch.nn.functional.pad(values, (16, 16)).unfold(-1, 96, 64).reshape(-1, 96)
    band = kernel[48:144, 64:128]  # the same for any 64 columns with 16 cells on either side
    return (blocks @ band).view(values.shape)


class Margins(NamedTuple):
    """Of n variables, float64, on every rung and for a single cell of all samples outside of atoms.

    Attributes:
        psi: `[rungs + 1, n]`, mean `psi` of the smoothed counts.
        log_floor: `[rungs, n]`, logarithm of the number of cells over the mass of a kernel.
        of_copies: `[rungs + 1, n]`, mean `psi` of the smoothed joint counts of the variable with a copy.
    """

    psi: Tensor
    log_floor: Tensor
    of_copies: Tensor

    def at(self, index: Tensor) -> "Margins":
        return Margins(*(t[:, index] for t in self))


def _margins(variables: Cells, cells: int, ladder: tuple[Rung, ...], n_atoms: int) -> Margins:
    places = variables.at(cells, n_atoms)
    n, n_samples = places.shape
    counts = torch.zeros(n, cells + n_atoms, dtype=torch.float64, device=places.device)
    counts.scatter_add_(1, places, counts.new_ones(()).expand_as(places))
    none = counts.new_zeros(n)
    atoms = none if variables.atoms is None else variables.atoms.double()
    outside = none + 1 if variables.discrete is None else (~variables.discrete).double()

    def mean_psi(f: Tensor, own: Tensor | float) -> Tensor:
        return (((f - own + 0.5).square() + 1 / 12).log() * counts).sum(1) / (2 * n_samples)

    psi, floors, of_copies = [], [], []
    for rung in ladder:
        if rung.cells < counts.shape[1] - n_atoms:
            counts = _halved(counts, 1, n_atoms)
        own = counts.new_ones(counts.shape[1])
        own[: rung.cells] = math.sqrt(2)
        kernel = rung.kernel.to(counts.device)
        # The joint counts of a copy lie on the diagonal, so there both kernels see the same counts.
        f, joint = (
            torch.cat([counts[:, : rung.cells] @ k, counts[:, rung.cells :]], 1)
            for k in (kernel, kernel.square())
        )
        psi.append(mean_psi(f, own))
        of_copies.append(mean_psi(joint, own.square()))
        floors.append(((atoms + outside * rung.cells) * n_samples / (f / own).sum(1)).log())
    counts = torch.cat([counts[:, : -n_atoms or None].sum(1, keepdim=True), counts[:, -n_atoms:]], 1)
    psi.append(mean_psi(counts, 1.0))
    return Margins(torch.stack(psi), torch.stack(floors), torch.stack([*of_copies, psi[-1]]))
