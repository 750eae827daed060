"""Plots of stored rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.throughput.cases import Case
from benchmarks.throughput.labels import write_beside
from benchmarks.throughput.rows import Row, exponent, of, variants
from benchmarks.throughput.tables import duration, is_ours, label

INK, GREY = "#2b2f36", "#7d828b"
COLOURS = {
    "grid": "#1f5fa8",
    "adaptive": "#c2185b",
    "kde": "#2a8f82",
    "renyi2": "#7a5aa6",
    "b-spline": "#b9772c",
}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#b9bec6",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#eceef1",
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "svg.hashsalt": "mikernels",  # so that equal rows give equal files
    "text.color": INK,
    "xtick.color": INK,
    "xtick.minor.bottom": False,
    "ytick.color": INK,
    "ytick.minor.left": False,
}
SWEEPS = ("grid over N", "grid over M", "kde over N", "kde over M")


def draw_all(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """PNG and SVG, `NAME-what.png`, of every figure whose series are all there; where they were written."""
    paths = []
    for what, draw, needed in (
        ("error", error, ("everyone",)),
        ("scaling", scaling, SWEEPS),
        ("roofline", roofline, SWEEPS),
    ):
        if all(of(rows, series) for series in needed):
            paths += save(draw, (rows,), folder / f"{name}-{what}")
    return paths


def save(draw: Callable[..., Figure], arguments: Sequence[Any], path: Path) -> list[Path]:
    """What `draw` makes of its arguments, as PNG and SVG: equal arguments give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    with plt.rc_context(STYLE):
        figure = draw(*arguments)
        for file in paths:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)
    return paths


def error(rows: Sequence[Row]) -> Figure:
    """Error against time, of all variants at one size: down and to the left is better."""
    some = of(rows, "everyone")
    case = some[0]["case"]
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    x = [seconds(r) for r in some]
    y = [r["result"]["rms_to_truth_nats"] for r in some]
    axes.set(xscale="log", xlim=(min(x) / 4, max(x) * 8), ylim=(0, 1.2 * max(y)))
    for row, at, height in zip(some, x, y, strict=True):
        face = "white" if row["result"]["extrapolated"] else colour(row)
        axes.plot(at, height, "o", color=colour(row), markerfacecolor=face, markersize=7, zorder=3)
    texts = [f"{label(r)}\n{duration(seconds(r))}" for r in some]
    write_beside(axes, texts, x, y, [colour(r) for r in some])
    axes.xaxis.set_major_formatter(FuncFormatter(_time_tick))
    axes.set_xlabel("time of all pairs (open circles: extrapolated from some of the pairs)")
    axes.set_ylabel("RMS error to the closed form, nats")
    axes.set_title(f"MI of all pairs of {case['N']} variables, {case['M']:,} samples: error against time")
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """Time against N and against M, with fitted exponents."""
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True)
    for axes, axis, fixed, words in zip(panels, "NM", "MN", ("variables", "samples"), strict=True):
        axes.set(xscale="log", yscale="log")
        at = []
        for series in (f"grid over {axis}", f"kde over {axis}"):
            at.append(f"{series.split()[0]} at {fixed} = {of(rows, series)[0]['case'][fixed]:,}")
            for variant in variants(rows, series):
                some = of(rows, series, variant)
                power = exponent(some, axis)
                axes.plot(
                    [r["case"][axis] for r in some],
                    [seconds(r) for r in some],
                    "o-",
                    color=colour(some[0]),
                    label=label(some[0]) + (f" ~ ${axis}^{{{power:.2f}}}$" if power == power else ""),
                )
        sizes = {r["case"][axis] for r in rows if r["case"]["series"].endswith(f"over {axis}")}
        _size_axis(axes, sorted(sizes), room=0.1)
        axes.set_xlabel(f"{words}, {axis} ({', '.join(at)})")
        axes.legend(loc="lower right", frameon=False, labelcolor="linecolor", fontsize=8)
    panels[0].set(ylabel="time of all pairs", title="Time against the number of variables")
    panels[0].yaxis.set_major_formatter(FuncFormatter(_time_tick))
    panels[1].set_title("and against the number of samples")
    return figure


def roofline(rows: Sequence[Row]) -> Figure:
    """What of the machine's own rates is reached: under the roofs, and as a share while N grows."""
    figure, (roofs, shares) = plt.subplots(1, 2, figsize=(8.6, 3.8), width_ratios=(5, 4))
    low, high = 4.0, 3e6
    intensities = np.geomspace(low, high, 400)
    for estimator in ("grid", "kde"):
        over = {axis: [r for r in of(rows, f"{estimator} over {axis}") if is_ours(r)] for axis in "NM"}
        own = over["N"] + over["M"]
        tint = colour(own[0])
        copy = median(r["result"]["copy_bytes_per_second"] for r in own)
        matmul = median(r["result"]["matmul_flop_per_second"] for r in own)
        roofs.plot(intensities, np.minimum(matmul, copy * intensities), color=tint)
        roofs.plot(
            [intensity(r) for r in own], [r["result"]["flop_per_second"] for r in own], "o", color=tint
        )
        roofs.annotate(
            f"matrix products in {own[0]['case']['precision']}, {_rate(matmul)}",
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
        write_beside(
            shares, [f"{label(last)}\n{percents[-1]:.0f} %"], [last["case"]["N"]], percents[-1:], [tint]
        )
    roofs.set(
        xscale="log", yscale="log", xlim=(low, high), title="Operations per second under the machine's limits"
    )
    roofs.set(xlabel="operations for each byte of samples and results")
    roofs.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    roofs.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))
    shares.set(xscale="log", ylim=(0, 100), xlabel="variables, N", title="% of the rate of matrix products")
    _size_axis(shares, sorted({r["case"]["N"] for r in rows if r["case"]["series"] in SWEEPS[::2]}), room=0.8)
    return figure


def seconds(row: Row) -> float:
    return float(row["result"]["seconds"]["median"])


def intensity(row: Row) -> float:
    """FLOP for each byte that must move at least: samples in, results out."""
    case = Case(**{k: v for k, v in row["case"].items() if k not in ("series", "variant")})
    return case.flops / case.least_bytes


def colour(row: Row) -> str:
    """Of ours by estimator; of peers grey, but for B-splines, the other estimator of all pairs at once."""
    peer = not is_ours(row) and row["case"]["estimator"] != "b-spline"
    return GREY if peer else COLOURS[row["case"]["estimator"]]


def _size_axis(axes: Axes, sizes: Sequence[int], room: float) -> None:
    """Sizes written out, every other one, and room for texts on the right as a share of the axis."""
    axes.set_xlim(sizes[0] * 0.8, sizes[-1] * (sizes[-1] / sizes[0]) ** room)
    axes.set_xticks(sizes[::2], [f"{size:,}" for size in sizes[::2]])


def _time_tick(value: float, _: int) -> str:
    return f"{value:,.0f} s" if value >= 1 else f"{value * 1000:,.0f} ms"


def _rate(value: float) -> str:
    return f"{value / 1e12:.3g} T/s" if value >= 1e12 else f"{value / 1e9:.3g} G/s"
