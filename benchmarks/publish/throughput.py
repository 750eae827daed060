"""The page of throughput: every series with its times and errors."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.publish import throughput_plots
from benchmarks.publish.page import conditions, latest, write_page
from benchmarks.publish.plots import save
from benchmarks.publish.throughput_rows import by_variant, exponent, label, of_series, seconds
from benchmarks.record import Row
from benchmarks.tables import duration, table

ESTIMATES = {
    "grid": "KDE on {nodes} nodes",
    "adaptive": "KDE, a bandwidth per pair",
    "kde": "KDE at the samples",
    "renyi2": "Rényi, order 2",
    "b-spline": "B-splines, {nodes} bins",
    "ksg": "KSG, 3 neighbors",
    "gaussian-copula": "Gaussian copula",
    "own": "its own",
    "full-kde": "KDE, full covariance",
}
PLOTS = (
    ("error", "Error of every variant against its time", ("everyone",)),
    ("scaling", "Time against the number of variables and of samples", throughput_plots.SWEEPS),
    ("roofline", "Operations per second against the limits of the machine", throughput_plots.SWEEPS),
)
"""Functions of `throughput_plots`, with a description and the series that they need."""


def publish(path: Path, out: Path) -> None:
    rows = latest(path)
    device = rows[0]["case"]["device"]
    sections = [
        "Time to compute the mutual information of all pairs of N variables from M samples, by mikernels and by other "
        "packages, always with the error of the values. The samples are heavy-tailed maps of correlated normal "
        "variables, whose mutual information has a closed form. The variants of a case run in turn in one process, and "
        "times are medians. Other packages get precomputed normal scores.",
        "RMS error (nats) and rank agreement (Spearman correlation) are relative to the closed form. *Error to "
        "float64* is the largest difference to the float64 reference of the same estimator. Memory is the peak beyond "
        "the inputs.",
        conditions(rows),
    ]
    for name, description, needed in PLOTS:
        if all(of_series(rows, series) for series in needed):
            save(getattr(throughput_plots, name), out / f"{path.stem}-{name}", rows)
            sections.append(f"![{description}]({path.stem}-{name}.png)")
    for series in dict.fromkeys(r["case"]["series"] for r in rows):
        sections.append(f"## {series[0].upper()}{series[1:]}")
        sections += sweep(rows, series) if " over " in series else comparison(of_series(rows, series))
    measure = f"python -m benchmarks.speed --device {device}"
    write_page(out / f"{path.stem}.md", f"Throughput ({device.upper()})", path.name, measure, sections)


def comparison(rows: Sequence[Row]) -> list[str]:
    """A table with a line for each variant of one case, fastest first."""
    case = rows[0]["case"]
    lines = []
    for row in sorted(rows, key=seconds):
        result = row["result"]
        factor = result.get("times_slower_than_ours", 1.0)
        lines.append(
            [
                label(row),
                ESTIMATES[row["case"]["estimator"]].format(**row["case"]),
                duration(seconds(row)) + (" \\*" if result["extrapolated"] else ""),
                f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}",
                f"{result['rms_to_truth_nats']:.3f}",
                optional(row, "spearman_to_truth", "{:.3f}"),
                optional(row, "max_error_nats", "{:.0e}"),
                optional(row, "peak_memory_mb", "{:,.0f} MB"),
            ]
        )
    head = [
        "",
        "estimates",
        "all pairs",
        "x ours",
        "RMS error",
        "rank agreement",
        "error to float64",
        "memory",
    ]
    note = f"N = {case['N']}, M = {case['M']}, {math.comb(case['N'], 2):,} pairs."
    if extrapolated := [
        f"{label(r)} {r['result']['pairs_timed']}" for r in rows if r["result"]["extrapolated"]
    ]:
        note += f" \\* Extrapolated from the time of some pairs: {', '.join(extrapolated)}."
    return [table(head, lines), note]


def sweep(rows: Sequence[Row], series: str) -> list[str]:
    """For each variant a table over the sizes, with the fitted exponent of the time."""
    axis = series[-1]
    other = {"N": "M", "M": "N"}[axis]
    head = [axis, "all pairs", "pairs/s", "of matmul rate", "memory", "RMS error", "error to float64"]
    sections = []
    for of_variant in by_variant(rows, series):
        power = exponent(of_variant, axis)
        growth = "" if power is None else f": time grows as {axis}^{power:.2f}"
        sections.append(f"**{label(of_variant[0])}**, {other} = {of_variant[0]['case'][other]}{growth}.")
        lines = [
            [
                str(row["case"][axis]),
                duration(seconds(row)),
                f"{row['result']['pairs_per_second']:,.0f}",
                optional(row, "share_of_matmul_rate", "{:.0%}"),
                optional(row, "peak_memory_mb", "{:,.0f} MB"),
                f"{row['result']['rms_to_truth_nats']:.3f}",
                optional(row, "max_error_nats", "{:.0e}"),
            ]
            for row in of_variant
        ]
        sections.append(table(head, lines))
    return sections


def optional(row: Row, key: str, form: str) -> str:
    """A value of the result, if it was measured."""
    value = row["result"].get(key)
    return "" if value is None else form.format(value)
