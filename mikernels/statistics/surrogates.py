"""Three ways to make a null distribution (`mikernels.statistics.null`).

Under the rank transform every variable without equal values is a permutation of the same M scores. If the samples are
independent too, the estimates for independent variables follow one distribution, which depends only on M and the
options. `null_distribution` simulates it once, from random permutations, by the code that makes the estimates
themselves. Columns with atoms (`mikernels.atoms`), and samples that depend on each other, such as the steps of a time
series, have another null: `permuted_null` and `shifted_null` take it from the data.
"""

import copy
import math
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from mikernels.api import mutual_information
from mikernels.arrays import Samples
from mikernels.caches import cached
from mikernels.errors import SamplesValueError
from mikernels.isolation import isolated
from mikernels.numbers import integer
from mikernels.options import Options, Problem, plain, resolve, shows_options
from mikernels.provenance import provenance_of
from mikernels.statistics.null import Null
from mikernels.transforms import transform_samples
from mikernels.validation import MIN_SAMPLES, as_samples, read_values

DRAWS = 400_000
"""Of which 400 lie beyond the rate of 0.001: it is known to 5 % (one standard error)."""
RARE = 0.05
"""Of the drawn columns of a wide table, the share that is for those with the most atoms."""
LEAST_SHIFTS, MOST_SHIFTS = 20, 1000


@shows_options()
@isolated()
def null_distribution(n_samples: int, *, draws: int = DRAWS, **options: Unpack[Options]) -> Null:
    """Simulate what `mutual_information` estimates for independent variables with these options. Cached.

    It is the null of independent samples without atoms. Independent series exceed it too often, and nearly always if
    they are strongly autocorrelated, and so do columns with atoms, such as zeros of a ReLU (`mikernels.atoms`), whose
    estimates it refuses: use `shifted_null` and `permuted_null` for those.

    Args:
        n_samples: M, at least 8.
        draws: D, the least number of pairs of independent variables. From 10,000 on the upper tail is fitted.
        options: see `mutual_information`, with the same defaults; `seed` also draws the permutations. `transform`
            must be `"rank"`, and `bandwidth="loo"` is refused: it would choose another bandwidth here than for a layer.

    Raises:
        ValueError: fewer than 8 samples, no draws, an option that has no null, or what `mutual_information` raises.
    """
    n_samples, draws, options = integer(n_samples, "n_samples"), _read_draws(draws), _read_options(options)
    if n_samples < MIN_SAMPLES:
        raise ValueError(f"n_samples: expected at least {MIN_SAMPLES}, got {n_samples}")
    null = _simulate(n_samples, draws, tuple(sorted(options.items())))
    return copy.deepcopy(null)  # a caller may change it in place


@cached(maxsize=32)
def _simulate(n_samples: int, draws: int, items: tuple[tuple[str, Any], ...]) -> Null:
    """The null of checked arguments."""
    options = cast(Options, dict(items))
    n_variables = _variables_for(draws)
    generator = torch.Generator().manual_seed(options.get("seed", 0) % 2**64)
    x = torch.rand(n_samples, n_variables, generator=generator, dtype=torch.float64)
    mi = mutual_information(x, **options)
    row, col = torch.triu_indices(n_variables, n_variables, offset=1)
    return Null(provenance_of(resolve(options, n_samples), n_samples), mi[row, col].sort().values.cpu())


@shows_options()
@isolated()
def permuted_null(
    x: Samples, y: Samples | None = None, *, draws: int = DRAWS, **options: Unpack[Options]
) -> Null:
    """What `mutual_information` estimates between columns whose rows are in another random order for each.

    A column keeps its equal values, such as zeros of a ReLU or of counts, and its dependence on all others is broken.
    All pairs are pooled into one null. Where columns are of several kinds, such as labels among genes, what chance adds
    to the pairs of one hides weak dependence of the others: use `calibrate=True`. It is for independent rows.

    Args:
        x, y, options: see `mutual_information`, with the same limits as for `null_distribution`; `seed` also draws the
            columns and the orders.
        draws: D, the least number of pairs.

    Raises:
        TypeError, ValueError: see `mutual_information`; ValueError for no draws or an option that has no null.

    Source: P. Good, Permutation, Parametric, and Bootstrap Tests of Hypotheses, 2005, DOI 10.1007/b138696.
    """
    draws, options = _read_draws(draws), _read_options(options)
    check = options.get("check_finite", True)  # here, where columns have their own numbers
    xs = read_values(as_samples(x, "x", options.get("device")), "x", check=check)
    ys = None if y is None else read_values(as_samples(y, "y", xs.device), "y", check=check)
    generator = torch.Generator().manual_seed(options.get("seed", 0) % 2**64)

    def permuted(values: Tensor, n: int) -> Tensor:
        out = values.new_empty(n, len(values))
        for row, column in zip(out, _drawn(n, _atoms_to_draw(n, values, options), generator), strict=True):
            order = torch.randperm(len(values), generator=generator)
            row.copy_(values[:, int(column)][order.to(values.device)])
        return out.t()

    if ys is None:
        n = _variables_for(draws)
        mi = mutual_information(permuted(xs, n), **options)
        row, col = torch.triu_indices(n, n, offset=1)
        found = mi[row, col]
    else:
        n = math.isqrt(draws - 1) + 1
        found = mutual_information(permuted(xs, n), permuted(ys, n), **options).flatten()
    made_with = provenance_of(resolve(options, len(xs)), len(xs))
    return Null(made_with, found.cpu().sort().values, for_atoms=True)


def _atoms_to_draw(n: int, values: Tensor, options: Options) -> Tensor:
    """How many atoms each column of `values [M, N]` has, `[N]` int64 on the CPU; zeros if `n` draws take every
    column: then none needs to be preferred."""
    none = torch.zeros(values.shape[1], dtype=torch.int64)
    if n >= len(none):
        return none
    resolved = resolve(options, len(values))
    most = Problem(resolved["estimator"], resolved["nodes"], 1.0).most_atoms
    atoms = transform_samples(values, "rank", seed=0, most_atoms=most).atoms
    return none if atoms is None else atoms.number.cpu()


def _drawn(n: int, atoms: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers `[n]` of columns with so many `atoms [N]`, in random order: all of them, as often as each other, or n
    different ones, of which `RARE` are those with the most atoms. What chance adds to a pair grows with the atoms of
    both, so the pairs of a label among many genes would exceed a null that happens to lack it.
    """
    order = torch.randperm(len(atoms), generator=generator)
    if n >= len(order):
        return order.repeat(-(-n // len(order)))[:n]
    most = atoms[order].argsort(descending=True, stable=True)[: math.ceil(RARE * n)]
    is_first = torch.zeros(len(order), dtype=torch.bool)
    is_first[most] = atoms[order[most]] > 0
    order = torch.cat([order[is_first], order[~is_first]])
    return order[torch.randperm(n, generator=generator)]


def _variables_for(draws: int) -> int:
    """How many variables have so many pairs: any two pairs are independent, even if they share a variable."""
    n = 2
    while n * (n - 1) // 2 < draws:
        n += 1
    return n


@shows_options()
@isolated()
def shifted_null(
    x: Samples, y: Samples | None = None, *, draws: int = DRAWS, **options: Unpack[Options]
) -> Null:
    """What `mutual_information` estimates between columns that are shifted against each other in time.

    A circular shift of all rows keeps each column with its autocorrelation and its equal values, and breaks the
    dependence between columns. All pairs are pooled into one null, see `permuted_null`.

    Args:
        x, y, options: see `mutual_information`, with the same limits as for `null_distribution`. The rows are in the
            order of time.
        draws: D, the number of pairs to reach, over 20 to 1,000 different shifts by a tenth to nine tenths of M. Short
            series and few columns have fewer.

    Raises:
        TypeError, ValueError: see `mutual_information`; ValueError for no draws or an option that has no null.

    Source: R. G. Andrzejak, A. Kraskov, H. Stoegbauer, F. Mormann, T. Kreuz, Bivariate surrogate techniques:
    necessity, strengths, and caveats, Phys. Rev. E 68 (2003), DOI 10.1103/PhysRevE.68.066202.
    """
    draws, options = _read_draws(draws), _read_options(options)
    check = options.get("check_finite", True)
    xs = read_values(as_samples(x, "x", options.get("device")), "x", check=check)
    ys = xs if y is None else read_values(as_samples(y, "y", xs.device), "y", check=check)
    n_samples = len(xs)
    if y is None and xs.shape[1] < 2:
        raise SamplesValueError(
            f"x: expected at least 2 variables (columns) to pair, got shape {list(xs.shape)}"
        )
    # As many columns as leave enough shifts to average over.
    n_rows, n_cols = (min(v.shape[1], max(2, math.isqrt(draws // LEAST_SHIFTS))) for v in (xs, ys))
    n_shifts = min(max(-(-draws // (n_rows * n_cols)), LEAST_SHIFTS), MOST_SHIFTS)
    generator = torch.Generator().manual_seed(options.get("seed", 0) % 2**64)
    # Without y, a shift of column i against k and the rest of a turn of k against i are the same pair.
    tenth = max(1, n_samples // 10)
    shifts = torch.arange(tenth, n_samples - tenth if y is not None else (n_samples + 1) // 2)
    x_atoms = _atoms_to_draw(n_rows, xs, options)
    y_atoms = x_atoms if y is None else _atoms_to_draw(n_cols, ys, options)
    found = []
    for shift in shifts[torch.randperm(len(shifts), generator=generator)[:n_shifts]].tolist():
        rows, cols = _drawn(n_rows, x_atoms, generator), _drawn(n_cols, y_atoms, generator)
        shifted = ys[:, cols.to(ys.device)].roll(shift, dims=0)
        mi = mutual_information(xs[:, rows.to(xs.device)], shifted, **options).cpu()
        # A column is no independent partner of itself.
        found.append(mi.flatten() if y is not None else mi[rows[:, None] != cols])
    values = torch.cat(found).sort().values
    return Null(provenance_of(resolve(options, n_samples), n_samples), values, for_atoms=True)


def _read_draws(draws: int) -> int:
    draws = integer(draws, "draws")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    return draws


def _read_options(options: Options) -> Options:
    """Plain options, if they have a null."""
    options = plain(options)
    if options.get("bandwidth") == "loo":
        raise ValueError("bandwidth: expected a number or a rule that sees no samples for a null, got 'loo'")
    if options.get("transform", "rank") != "rank":
        raise ValueError(f"transform: expected 'rank' for a null, got {options['transform']!r}")
    return options
