"""What the command says of a run when it ends, early or not."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pruning.report.manifest import Report
from pruning.report.page import write_html
from pruning.sweeping import Swept


class Saved:
    """What a run that ends with an error has already saved, for its message."""

    def __init__(self, statistics: str | None) -> None:
        self._statistics = statistics
        self._before = self._written()
        self.out: Path | None = None

    def __str__(self) -> str:
        names = [f"the statistics in {self._statistics}"] if self._written() != self._before else []
        names += [f"the pruned model in {self.out}"] if self.out is not None else []
        return f" (already saved: {' and '.join(names)})" if names else ""

    def _written(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._statistics) if self._statistics else None
        except (OSError, ValueError):
            return None
        return (status.st_ino, status.st_mtime_ns) if status is not None else None


def times(report: Report, start: float) -> str:
    """The seconds since `start`, and those of each stage."""
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in report.seconds.items())
    return f"{time.perf_counter() - start:.0f} s in total: {stages}."


def write_page(args: argparse.Namespace, sweep: Sequence[Swept] = ()) -> None:
    """Write the page of the result, or of a sweep, if there is to be one, and say where."""
    if args.report is not None:
        write_html([] if sweep else args.out, args.report, sweep=sweep)
        print(f"Report: {args.report}", file=sys.stderr if args.json else sys.stdout)
