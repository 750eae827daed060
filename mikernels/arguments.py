"""The arguments of the command `mikernels`."""

import argparse
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin, get_type_hints

from mikernels import files
from mikernels.api import mutual_information
from mikernels.numbers import real
from mikernels.options import OPTIONS, Options, plain, resolve
from mikernels.statistics.surrogates import DRAWS

TOP = 1000
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def parser() -> argparse.ArgumentParser:
    """With an option for each of `mikernels.Options`, and those of the command alone."""
    found = argparse.ArgumentParser(
        prog="mikernels",
        description="Find the pairs of columns that share most information: a table of samples in, a table of edges "
        "out (first, second, mi in nats, p, q).",
    )
    found.add_argument(
        "data",
        help=f"table with a row for each sample and a column for each variable ({', '.join(files.READ)})",
    )
    found.add_argument(
        "--y",
        metavar="FILE|NAME,NAME,...",
        help="pairs of each column with each of these: columns of another table of the same samples, or these columns "
        "of the same table, each with every column that is not named here",
    )
    found.add_argument(
        "--drop", metavar="NAME,NAME,...", help="columns of either table to leave out, such as those of text"
    )
    found.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help=f"whether the first line of {' and '.join(files.SEPARATORS)} names the columns, which are f0, f1, ... "
        "without; needed if it holds nothing but numbers, and these are not 0, 1, ...",
    )
    found.add_argument(
        "--out", metavar="FILE", help=f"({', '.join(files.WRITTEN)}); by default CSV to standard output"
    )
    choice = found.add_mutually_exclusive_group()
    choice.add_argument("--top", type=int, metavar="K", help=f"the best K pairs (default {TOP})")
    choice.add_argument(
        "--threshold",
        metavar="NATS|null:Q",
        help="every pair above so many nats, or above the quantile Q of independent variables",
    )
    choice.add_argument(
        "--fdr", type=float, metavar="RATE", help="every pair at this rate of false discoveries, such as 0.05"
    )
    choice.add_argument(
        "--matrix", metavar="FILE", help="the whole matrix, to an .npy file; no table of edges"
    )
    found.add_argument(
        "--time-series",
        action="store_true",
        help="rows are in the order of time: p-values keep the autocorrelation of columns",
    )
    found.add_argument("--draws", type=int, help=f"independent pairs behind the p-values (default {DRAWS})")
    found.add_argument("--quiet", action="store_true", help="print only the table and errors")
    found.add_argument("--debug", action="store_true", help="print the traceback of an error as well")
    estimate = found.add_argument_group("the estimate")
    for name, hint in get_type_hints(Options).items():
        _add_option(estimate, name, hint)
    return found


def _add_option(group: Any, name: str, hint: Any) -> None:
    """A flag for an option that all functions share, with its documentation."""
    documented = inspect.getdoc(mutual_information) or ""  # None with python -OO
    entry = re.search(rf"^    {name}: (.*?)(?=^\s*$|^    \w+:)", documented, re.MULTILINE | re.DOTALL)
    text = "" if entry is None else " ".join(entry[1].replace("`", "").split()).replace("%", "%%")
    flag, kinds = "--" + name.replace("_", "-"), set(get_args(hint)) or {hint}
    if get_origin(hint) is Literal:
        group.add_argument(flag, choices=get_args(hint), help=text)
    elif bool in kinds:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    else:
        read: Callable[[str], Any] = str
        if name == "memory_budget":
            read = byte_count
        elif float in kinds:
            read = _number_or_text
        elif int in kinds:
            read = int
        group.add_argument(flag, type=read, metavar=name.upper(), help=text)


def byte_count(text: str) -> int:
    """Such as 536870912, 512M or 0.5GiB."""
    found = re.fullmatch(r"(\d+\.?\d*)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number of bytes, such as 512M or 2G, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # `resolve` checks it


class Threshold(NamedTuple):
    """Nats, or the quantile of the null that they are."""

    number: float
    of_null: bool


def check(args: argparse.Namespace) -> tuple[Threshold | None, Options]:
    """What the arguments ask for, after every check that needs no samples.

    Raises:
        ValueError: an argument that is not possible.
    """
    given = plain(
        cast(Options, {name: value for name in OPTIONS if (value := getattr(args, name)) is not None})
    )
    resolve(given, 2**20)
    if args.top is not None and args.top < 1:
        raise ValueError(f"--top: expected at least 1, got {args.top}")
    if args.fdr is not None and not 0 < args.fdr < 1:
        raise ValueError(f"--fdr: expected a rate between 0 and 1, got {args.fdr}")
    tables = [args.data, *([args.y] if args.y and Path(args.y).exists() else ())]
    kinds = {files.ending_of(table, files.READ, packed=True) for table in tables}
    if args.header is not None and kinds.isdisjoint(files.SEPARATORS):
        flag = "--header" if args.header else "--no-header"
        raise ValueError(
            f"{flag}: expected a table in {' or '.join(files.SEPARATORS)} with it, got {' and '.join(tables)}"
        )
    out = args.out if args.matrix is None else args.matrix
    if out is not None:
        files.ending_of(out, files.WRITTEN if args.matrix is None else (".npy",))
        if not Path(out).resolve().parent.is_dir() or Path(out).is_dir():
            raise ValueError(f"{out}: expected a file in a folder that exists, got none such")
        if any(
            name and Path(name).exists() and Path(out).exists() and Path(name).samefile(out)
            for name in (args.data, args.y)
        ):
            raise ValueError(f"{out}: expected another file than the samples are in")
    if args.matrix is not None and args.out is not None:
        raise ValueError("--out: expected none with --matrix, which writes no table")
    for flag, is_given in (("--time-series", args.time_series), ("--draws", args.draws is not None)):
        if args.matrix is not None and is_given:
            raise ValueError(f"{flag}: expected none with --matrix, which has no p-values")
    if args.threshold is None:
        return None, given
    kind, colon, number = args.threshold.rpartition(":")
    try:
        if colon and kind != "null":
            raise ValueError
        threshold = Threshold(real(float(number), "--threshold", "a number"), bool(colon))
    except ValueError:
        raise ValueError(
            f"--threshold: expected a number of nats or null:Q, such as null:0.999, got {args.threshold!r}"
        ) from None
    if threshold.of_null and not 0 < threshold.number < 1:
        raise ValueError(f"--threshold: expected a quantile between 0 and 1, got {threshold.number}")
    return threshold, given
