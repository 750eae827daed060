"""Markdown tables of stored rows."""

import math
from collections.abc import Sequence

from benchmarks.throughput.rows import Row, exponent, of, variants
from benchmarks.throughput.variants import VARIANTS

ESTIMATES = {
    "grid": "KDE on {nodes} nodes",
    "adaptive": "KDE, a bandwidth a pair",
    "kde": "KDE at the samples",
    "renyi2": "Rényi, order 2",
    "b-spline": "B-splines, {nodes} bins",
    "ksg": "KSG, 3 neighbours",
    "full-kde": "KDE, full covariance",
}


def comparison(rows: Sequence[Row]) -> str:
    """One row a variant, timed in one run: time, accuracy, memory."""
    ordered = sorted(rows, key=lambda r: r["result"]["seconds"]["median"])
    return table(
        ["", "estimates", "all pairs", "x ours", "RMS error", "rank agreement", "error to float64", "memory"],
        [
            [
                label(r),
                estimate(r),
                duration(r["result"]["seconds"]["median"]) + (" *" if r["result"]["extrapolated"] else ""),
                times(r["result"].get("times_slower_than_ours", 1.0)),
                f"{r['result']['rms_to_truth_nats']:.3f}",
                optional(r, "spearman_to_truth", "{:.3f}"),
                optional(r, "max_error_nats", "{:.0e}"),
                optional(r, "peak_memory_mb", "{:,.0f} MB"),
            ]
            for r in ordered
        ],
    )


def comparison_notes(rows: Sequence[Row]) -> str:
    """What the columns mean, and how many pairs stand behind an extrapolated time."""
    case = rows[0]["case"]
    sampled = [f"{label(r)} {r['result']['pairs_timed']}" for r in rows if r["result"]["extrapolated"]]
    note = (
        f"N = {case['N']} variables of M = {case['M']} samples, {math.comb(case['N'], 2):,} pairs; medians of one run "
        "in which the variants took turns. RMS error (nats) and rank agreement (Spearman) are to the closed form, the "
        "error to float64 is the largest to the reference of the same estimator, memory is the peak beyond the inputs."
    )
    if sampled:
        note += f" \\* Extrapolated from the time of some pairs: {', '.join(sampled)}."
    return note


def sweep(rows: Sequence[Row], series: str) -> str:
    """Time, rate and memory of each variant as one size grows, with the fitted exponents."""
    axis = series[-1]
    parts = []
    for variant in variants(rows, series):
        some = of(rows, series, variant)
        case = some[0]["case"]
        fixed = f"M = {case['M']}" if axis == "N" else f"N = {case['N']}"
        power = exponent(some, axis)
        growth = f": time grows as {axis}^{power:.2f}" if power == power else ""
        parts.append(f"**{label(some[0])}**, {fixed}{growth}.")
        parts.append(
            table(
                [axis, "all pairs", "pairs/s", "of matmul rate", "memory", "RMS error", "error to float64"],
                [
                    [
                        f"{r['case'][axis]}",
                        duration(r["result"]["seconds"]["median"]),
                        f"{r['result']['pairs_per_second']:,.0f}",
                        optional(r, "share_of_matmul_rate", "{:.0%}"),
                        optional(r, "peak_memory_mb", "{:,.0f} MB"),
                        f"{r['result']['rms_to_truth_nats']:.3f}",
                        optional(r, "max_error_nats", "{:.0e}"),
                    ]
                    for r in some
                ],
            )
        )
    return "\n\n".join(parts)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def label(row: Row) -> str:
    """Name of the variant; of ours with its estimator and precision."""
    case = row["case"]
    if not is_ours(row):
        return VARIANTS[case["variant"]].label
    return f"mikernels {case['estimator']} {case['precision']}".removesuffix(" auto")


def is_ours(row: Row) -> bool:
    return VARIANTS[row["case"]["variant"]].ours


def estimate(row: Row) -> str:
    """The estimator in words."""
    return ESTIMATES[row["case"]["estimator"]].format(**row["case"])


def duration(seconds: float) -> str:
    """Two or three digits and a unit."""
    units = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
    unit = next((u for u, size in units.items() if seconds >= size), "ms")
    value = seconds / units[unit]
    return f"{value:.{1 if value < 10 else 0}f} {unit}"


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def optional(row: Row, key: str, form: str) -> str:
    """A value of the result where it was measured."""
    value = row["result"].get(key)
    return "" if value is None else form.format(value)
