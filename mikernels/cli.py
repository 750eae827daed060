"""`mikernels`: the pairs of a table's columns that share most information, as a table of edges."""

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mikernels import arguments, files, ops
from mikernels.api import prepare
from mikernels.arrays import to_tensor
from mikernels.errors import SamplesValueError
from mikernels.options import OPTIONS, Options
from mikernels.pairs import Block, Pairs
from mikernels.statistics.null import Null, q_values
from mikernels.statistics.surrogates import DRAWS, permuted_null, shifted_null
from mikernels.terminal import any_encoding, describe, discard_output, ends_in_order, warnings_in_one_line
from mikernels.written import complete_file

MARGIN = 1.1
"""Pairs with p-values up to this times the rate are listed before the false discovery rate chooses among them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 on success, 1 after printing an error in one line to standard error, 130 if
    interrupted."""
    with any_encoding(), ends_in_order():
        args = arguments.parser().parse_args(argv)
        try:
            with warnings_in_one_line("mikernels", quiet=args.quiet):
                _run(args)
        except KeyboardInterrupt:
            print("mikernels: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if args.debug:
                traceback.print_exc()
            if isinstance(error, BrokenPipeError):
                discard_output()
            # The engine calls its inputs x and y.
            text = re.sub("^[xy](?=: )", lambda m: args.data if m[0] == "x" else args.y, describe(error))
            print(f"mikernels: {text}", file=sys.stderr, flush=True)
            return 1
    return 0


class _Samples(NamedTuple):
    """Samples ready to compute with, and the names of their columns."""

    x: Tensor
    y: Tensor | None
    options: Options
    rows: list[Any]
    cols: list[Any]

    @property
    def n_pairs(self) -> int:
        n = len(self.rows)
        return n * (n - 1) // 2 if self.y is None else n * len(self.cols)


def _run(args: argparse.Namespace) -> None:
    threshold, given = arguments.check(args)
    samples = _load(args, given)
    with _columns_by_name(samples):
        if args.matrix is None:
            _write_edges(args, samples, threshold)
        else:
            _write_matrix(args, samples)


@contextmanager
def _columns_by_name(samples: _Samples) -> Iterator[None]:
    """Say the name of a column in errors that know its number."""

    def name(found: re.Match[str]) -> str:
        names = samples.rows if found[1] == "x" else samples.cols
        return f"{found[1]}: {found[2]}(the first is column {names[int(found[3])]!r})"

    try:
        yield
    except SamplesValueError as error:
        raise SamplesValueError(
            re.sub(r"^([xy]): (.*)\(the first is column (\d+)\)", name, str(error))
        ) from error


def _write_edges(args: argparse.Namespace, samples: _Samples, threshold: arguments.Threshold | None) -> None:
    null = _null(args, samples, needed=args.fdr is not None or (threshold is not None and threshold.of_null))
    pairs = _pairs(args, samples, threshold, null)
    significance: dict[str, Tensor] = {}
    if null is not None:
        p = null.p_value(pairs.mi.cpu())
        q = q_values(p, samples.n_pairs)
        n = len(q) if args.fdr is None else int((q <= args.fdr).sum())
        pairs, significance = Pairs(*(t[:n] for t in pairs)), {"p": p[:n], "q": q[:n]}
    names = {"first": (samples.rows, pairs.first), "second": (samples.cols, pairs.second)}
    files.write_pairs(args.out, names, {"mi": pairs.mi} | significance)
    _say(args, f"{len(pairs.mi):,} of {samples.n_pairs:,} pairs from {len(samples.x):,} samples", args.out)


def _load(args: argparse.Namespace, given: Options) -> _Samples:
    table, names = files.read(args.data, header=args.header)
    rows = files.columns(table)
    if args.y is None:
        others, cols, own, file = None, rows, [], ""
        (left_out,) = _named(args.drop, "--drop", rows)
    elif Path(args.y).exists():
        others, other_names = files.read(args.y, header=args.header)
        _check_order(names, other_names, args.data)
        cols, file = files.columns(others), args.y
        left_out, left_out_of_y = _named(args.drop, "--drop", rows, cols)
        own = _others(left_out_of_y, cols)
    else:
        others, cols, file = table, rows, args.data
        (own,) = _named(args.y, "--y", rows)
        (left_out,) = _named(args.drop, "--drop", rows)
        left_out = left_out + own
    kept = _others(left_out, rows)
    x = _tensor(args, args.data, table, kept, "x")
    y = None if others is None else _tensor(args, file, others, own, "y")
    del table, others  # before the long step
    xs, ys, options = prepare(x, y, given)
    own = kept if ys is None else own
    return _Samples(xs, ys, options, [rows[i] for i in kept], [cols[i] for i in own])


def _tensor(args: argparse.Namespace, file: str, table: Any, places: list[int], name: str) -> Tensor:
    """Some columns of the table that is in `file`."""
    chosen = files.select(table, places)
    files.check_integers(file, chosen, header=args.header)
    return to_tensor(chosen, name)


def _check_order(names: list[str] | None, others: list[str] | None, file: str) -> None:
    """Raise SamplesValueError if the rows of two files have some names in common, but not all in the same places."""
    if names is None or others is None or names == others or set(names).isdisjoint(others):
        return
    quoted = ([repr(name) for name in own] for own in (names, others))
    pairs = zip_longest(*quoted, fillvalue="no row")
    name, other = next((name, other) for name, other in pairs if name != other)
    raise SamplesValueError(
        f"y: expected the rows of {file}, got {other} in place of {name}; drop what only one of them has, and sort "
        f"both by their names"
    )


def _others(places: list[int], names: list[Any]) -> list[int]:
    """The places of the columns that are not at `places`."""
    return sorted(set(range(len(names))) - set(places))


def _named(text: str | None, option: str, *tables: list[Any]) -> list[list[int]]:
    """The places of the columns that are named in `text`, in each of the tables whose columns have these names."""
    parts = [] if text is None else text.split(",")
    names = [[str(name) for name in table] for table in tables]
    for part in parts:
        counts = [table.count(part) for table in names]
        if not any(counts):
            file = " or a file" if option == "--y" else ""
            raise SamplesValueError(f"{option}: expected names of columns{file}, got {part!r}, which is none")
        if max(counts) > 1:
            raise SamplesValueError(
                f"{option}: expected names of one column each, got {part!r}, which several have"
            )
        if parts.count(part) > 1:
            raise SamplesValueError(f"{option}: expected each name once, got {part!r} more than once")
    return [[table.index(part) for part in parts if part in table] for table in names]


def _null(args: argparse.Namespace, samples: _Samples, *, needed: bool) -> Null | None:
    """Estimates for independent columns like these; None if the options have no null and none is needed."""
    options = {
        name: value for name in OPTIONS if (value := getattr(args, name)) is not None and name != "device"
    }
    if options.get("bandwidth") == "loo" or options.get("transform", "rank") != "rank":
        if needed:
            raise ValueError(
                "--fdr and null:Q: expected ranks and a bandwidth other than loo, got another option"
            )
        _say(args, "no p-values: only ranks, and bandwidths other than loo, have them")
        return None
    make = shifted_null if args.time_series else permuted_null
    draws = DRAWS if args.draws is None else args.draws
    return make(samples.x, samples.y, draws=draws, **options)


def _pairs(
    args: argparse.Namespace, samples: _Samples, threshold: arguments.Threshold | None, null: Null | None
) -> Pairs:
    x, y, options, *_ = samples
    with _bar(args, samples) as progress:
        if args.fdr is not None and null is not None:
            rate = args.fdr * MARGIN
            above = null.quantile(1 - rate) if rate < 1 else -1.0
        elif threshold is not None:
            above = threshold.number
            if threshold.of_null and null is not None:
                above = null.quantile(threshold.number)
        else:
            return ops.best(x, y, options, args.top or arguments.TOP, progress=progress)
        return ops.above(x, y, options, above, progress=progress)


def _write_matrix(args: argparse.Namespace, samples: _Samples) -> None:
    shape = (len(samples.rows), len(samples.cols))
    with complete_file(Path(args.matrix)) as part:
        stored = files.matrix_file(part, shape)
        with _bar(args, samples) as progress:
            into = to_tensor(stored, "matrix") if samples.x.device.type == "cpu" else None
            mi = ops.matrix(samples.x, samples.y, samples.options, out=into, progress=progress)
            if into is None:
                stored[:] = mi.cpu().numpy()
        stored.flush()
    _say(args, f"{shape[0]:,} x {shape[1]:,} from {len(samples.x):,} samples", args.matrix)


@contextmanager
def _bar(args: argparse.Namespace, samples: _Samples) -> Iterator[Callable[[Block], None] | None]:
    """A function that is told every block, and shows on a terminal how many pairs are done and the time left."""
    try:
        from tqdm import tqdm
    except ImportError:  # the table does not need it
        yield None
        return
    n, symmetric = len(samples.rows), samples.y is None
    total = n * (n + 1) // 2 if symmetric else n * len(samples.cols)
    # None: only on a terminal.
    with tqdm(total=total, unit=" pairs", unit_scale=True, disable=True if args.quiet else None) as bar:

        def progress(block: Block) -> None:
            k = len(block.mi)
            bar.update(k * (k + 1) // 2 if symmetric and block.row == block.col else block.mi.numel())

        yield progress


def _say(args: argparse.Namespace, text: str, file: str | None = None) -> None:
    if not args.quiet:
        print(f"mikernels: {text}{f', in {file}' if file else ''}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
