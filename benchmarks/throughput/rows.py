"""Stored rows of throughput, picked for tables and plots."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """The latest row of each case and variant, in the order in which they were first stored."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[json.dumps(row["case"], sort_keys=True)] = row
    return list(rows.values())


def of(rows: Sequence[Row], series: str, variant: str | None = None) -> list[Row]:
    """Those of a series, or of one of its variants, by growing size."""
    found = [r for r in rows if r["case"]["series"] == series and variant in (None, r["case"]["variant"])]
    return sorted(found, key=lambda r: (r["case"]["N"], r["case"]["M"]))


def variants(rows: Sequence[Row], series: str) -> list[str]:
    """Names of the variants of a series, as stored."""
    return list(dict.fromkeys(r["case"]["variant"] for r in of(rows, series)))


def exponent(rows: Sequence[Row], axis: str) -> float:
    """p of `seconds ~ axis^p` by least squares on the logarithms of the medians; NaN for less than 3 rows."""
    if len(rows) < 3:
        return math.nan
    sizes = np.log([r["case"][axis] for r in rows])
    seconds = np.log([r["result"]["seconds"]["median"] for r in rows])
    return float(np.polyfit(sizes, seconds, 1)[0])


def conditions(rows: Sequence[Row]) -> str:
    """Machine, versions, commit and seed, in words."""
    row = rows[-1]
    machine, versions = row["machine"], row["versions"]
    commits = ", ".join(dict.fromkeys(r["commit"] for r in rows))
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)} of {machine['cpu']}"
    where = machine.get("gpu", threads)
    return (
        f"{where}, torch {versions['torch']}, Python {versions['python']}, commit {commits}, {row['date']}, "
        f"seed {row['case']['seed']}"
    )
