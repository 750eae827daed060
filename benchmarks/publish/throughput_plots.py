"""Plots of throughput."""

from collections.abc import Sequence
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.publish.plots import COLORS, GRAY, size_ticks, write_beside
from benchmarks.publish.throughput_rows import by_variant, exponent, is_ours, label, of_series, seconds
from benchmarks.record import Row
from benchmarks.speed.cases import Case
from benchmarks.tables import duration

SWEEPS = ("grid over N", "grid over M", "kde over N", "kde over M")


def error(rows: Sequence[Row]) -> Figure:
    """Error against time of all variants at one size; down and to the left is better."""
    rows = of_series(rows, "everyone")
    case = rows[0]["case"]
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    x = [seconds(r) for r in rows]
    y = [r["result"]["rms_to_truth_nats"] for r in rows]
    axes.set(xscale="log", xlim=(min(x) / 4, max(x) * 8), ylim=(0, 1.2 * max(y)))
    for row, at, height in zip(rows, x, y, strict=True):
        face = "white" if row["result"]["extrapolated"] else color(row)
        axes.plot(at, height, "o", color=color(row), markerfacecolor=face, markersize=7, zorder=3)
    texts = [f"{label(r)}\n{duration(seconds(r))}" for r in rows]
    write_beside(axes, texts, x, y, [color(r) for r in rows])
    axes.xaxis.set_major_formatter(FuncFormatter(_time_tick))
    axes.set_xlabel("time of all pairs (open circles: extrapolated from some pairs)")
    axes.set_ylabel("RMS error to the closed form, nats")
    axes.set_title(f"MI of all pairs of {case['N']} variables, {case['M']:,} samples: error against time")
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """Time against N and against M, with fitted exponents."""
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True)
    for axes, axis, other, noun in zip(panels, "NM", "MN", ("variables", "samples"), strict=True):
        axes.set(xscale="log", yscale="log")
        fixed = []
        for series in (f"grid over {axis}", f"kde over {axis}"):
            fixed.append(f"{series.split()[0]} at {other} = {of_series(rows, series)[0]['case'][other]:,}")
            for of_variant in by_variant(rows, series):
                power = exponent(of_variant, axis)
                axes.plot(
                    [r["case"][axis] for r in of_variant],
                    [seconds(r) for r in of_variant],
                    "o-",
                    color=color(of_variant[0]),
                    label=label(of_variant[0]) + ("" if power is None else f" ~ ${axis}^{{{power:.2f}}}$"),
                )
        _size_axis(axes, {r["case"][axis] for r in rows if r["case"]["series"].endswith(f"over {axis}")}, 0.1)
        axes.set_xlabel(f"{noun}, {axis} ({', '.join(fixed)})")
        axes.legend(loc="lower right", labelcolor="linecolor", fontsize=8)
    panels[0].set(ylabel="time of all pairs", title="Time against the number of variables")
    panels[0].yaxis.set_major_formatter(FuncFormatter(_time_tick))
    panels[1].set_title("Time against the number of samples")
    return figure


def roofline(rows: Sequence[Row]) -> Figure:
    """Achieved rates under the limits of the machine, and as a share of the matmul rate over N."""
    figure, (roofs, shares) = plt.subplots(1, 2, figsize=(8.6, 3.8), width_ratios=(5, 4))
    low, high = 4.0, 3e6
    intensities = np.geomspace(low, high, 400)
    for estimator in ("grid", "kde"):
        over = {axis: [r for r in of_series(rows, f"{estimator} over {axis}") if is_ours(r)] for axis in "NM"}
        ours = over["N"] + over["M"]
        tint = color(ours[0])
        copy = median(r["result"]["copy_bytes_per_second"] for r in ours)
        matmul = median(r["result"]["matmul_flop_per_second"] for r in ours)
        roofs.plot(intensities, np.minimum(matmul, copy * intensities), color=tint)
        rates = [r["result"]["flop_per_second"] for r in ours]
        roofs.plot([intensity(r) for r in ours], rates, "o", color=tint)
        roofs.annotate(
            f"matrix products in {ours[0]['case']['precision']}, {_rate(matmul)}",
            (high, matmul),
            xytext=(0, 4),
            textcoords="offset points",
            color=tint,
            fontsize=8,
            ha="right",
        )
        percents = [100 * r["result"]["share_of_matmul_rate"] for r in over["N"]]
        shares.plot([r["case"]["N"] for r in over["N"]], percents, "o-", color=tint)
        last = over["N"][-1]
        text = f"{label(last)}\n{percents[-1]:.0f} %"
        write_beside(shares, [text], [last["case"]["N"]], percents[-1:], [tint])
    roofs.set(xscale="log", yscale="log", xlim=(low, high), title="Operations per second")
    roofs.set(xlabel="operations per byte of samples and results")
    roofs.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    roofs.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))
    shares.set(xscale="log", ylim=(0, 100), xlabel="variables, N", title="% of the rate of matrix products")
    _size_axis(shares, {r["case"]["N"] for r in rows if r["case"]["series"] in SWEEPS[::2]}, 0.8)
    return figure


def intensity(row: Row) -> float:
    """FLOP per byte that must be moved: samples in, results out."""
    case = Case(**{k: v for k, v in row["case"].items() if k not in ("series", "variant")})
    return case.flops / case.least_bytes


def color(row: Row) -> str:
    """By estimator for variants of mikernels and for B-splines; other packages are gray."""
    estimator = row["case"]["estimator"]
    return COLORS[estimator] if is_ours(row) or estimator == "b-spline" else GRAY


def _size_axis(axes: Axes, sizes: set[int], room: float) -> None:
    """Every other size written out, and room for text on the right, as a share of the axis."""
    ordered = sorted(sizes)
    size_ticks(axes, ordered[::2])
    axes.set_xlim(ordered[0] * 0.8, ordered[-1] * (ordered[-1] / ordered[0]) ** room)


def _time_tick(value: float, _: int) -> str:
    return f"{value:,.0f} s" if value >= 1 else f"{value * 1000:,.0f} ms"


def _rate(value: float) -> str:
    return f"{value / 1e12:.3g} T/s" if value >= 1e12 else f"{value / 1e9:.3g} G/s"
