"""`mi-report`: show results of `mi-prune` again, one or several side by side."""

import argparse
import sys

from mikernels.terminal import HelpFormatter, any_encoding, describe
from pruning.paths import check_report
from pruning.report.page import write_html
from pruning.report.plain import ASCII, BLOCKS, plain_text
from pruning.report.result import load_result
from pruning.report.swept import load_rows

PAGE = "mi-report.html"


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 on success, 1 after printing an error in one line to standard error."""
    args = command_parser().parse_args(argv)
    try:
        with any_encoding():
            _run(args)
    except Exception as error:
        print(f"mi-report: {describe(error)}", file=sys.stderr)
        return 1
    return 0


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mi-report",
        description="Show what mi-prune dropped, why, what it cost, and how far one may go.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("results", metavar="DIR", nargs="+", help="folder of a result; several are compared")
    parser.add_argument("--out", metavar="FILE.html", help=f"the page, which is replaced (default: {PAGE})")
    parser.add_argument("--text", action="store_true", help="print a form for terminals instead of a page")
    parser.add_argument(
        "--sweep",
        metavar="FILE.json",
        help="what mi-prune --sweep --json printed for the same model, for the curve of quality against the ratio",
    )
    parser.add_argument(
        "--no-text",
        dest="excerpts",
        action="store_false",
        help="show no words of the calibration text",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.text:
        for option, value in (("--sweep", args.sweep), ("--out", args.out)):
            if value is not None:
                raise ValueError(f"{option}: expected none with --text, which writes no page, got {value}")
        results = [load_result(folder, text=False) for folder in args.results]
        print(plain_text(results, blocks=BLOCKS if _can_print(BLOCKS) else ASCII))
        return
    sweep = load_rows(args.sweep) if args.sweep is not None else []
    out = PAGE if args.out is None else args.out
    check_report(out, option="--out")
    write_html(args.results, out, sweep=sweep, text=args.excerpts)
    print(f"Report: {out}")


def _can_print(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
