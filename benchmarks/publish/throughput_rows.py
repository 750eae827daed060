"""Selection and labels of the stored rows of throughput."""

from collections.abc import Sequence

import numpy as np

from benchmarks.record import Row
from benchmarks.speed.variants import find


def of_series(rows: Sequence[Row], series: str, variant: str | None = None) -> list[Row]:
    """The rows of a series, or of one of its variants, by increasing size."""
    found = [r for r in rows if r["case"]["series"] == series and variant in (None, r["case"]["variant"])]
    return sorted(found, key=lambda r: (r["case"]["N"], r["case"]["M"]))


def by_variant(rows: Sequence[Row], series: str) -> list[list[Row]]:
    """The rows of each variant of a series."""
    names = dict.fromkeys(r["case"]["variant"] for r in of_series(rows, series))
    return [of_series(rows, series, name) for name in names]


def exponent(rows: Sequence[Row], axis: str) -> float | None:
    """p of `seconds ~ axis^p`, by least squares on the logarithms of the medians; None for fewer than 3 rows."""
    if len(rows) < 3:
        return None
    sizes = np.log([r["case"][axis] for r in rows])
    return float(np.polyfit(sizes, np.log([seconds(r) for r in rows]), 1)[0])


def seconds(row: Row) -> float:
    """The median of the turns."""
    return float(row["result"]["seconds"]["median"])


def is_ours(row: Row) -> bool:
    return find(row["case"]["variant"]).ours


def label(row: Row) -> str:
    """The name of the variant; for those of mikernels with estimator and precision."""
    case = row["case"]
    if not is_ours(row):
        return find(case["variant"]).label
    return f"mikernels {case['estimator']} {case['precision']}".removesuffix(" auto")
