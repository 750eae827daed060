"""Plots of stored rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from benchmarks.throughput.cases import Case
from benchmarks.throughput.rows import Row, exponent, of, variants
from benchmarks.throughput.tables import duration, is_ours, label

BLUE, TEAL, OCHRE, GREY, INK = "#1f5fa8", "#2a8f82", "#b9772c", "#8a8f98", "#2b2f36"
COLOURS = {"grid": BLUE, "kde": TEAL, "renyi2": "#7a5aa6", "b-spline": OCHRE}
STYLE = {
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
    "savefig.dpi": 200,
    "svg.hashsalt": "mikernels",  # so that equal rows give equal files
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
}


def error(rows: Sequence[Row]) -> Figure:
    """Error against time, of all variants at one size: down and to the left is better."""
    some = sorted(of(rows, "everyone"), key=seconds)
    case = some[0]["case"]
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    x = [seconds(r) for r in some]
    y = [r["result"]["rms_to_truth_nats"] for r in some]
    axes.set(xscale="log", xlim=(min(x) / 2, max(x) * 8), ylim=(0, 1.2 * max(y)))
    for row, at, height in zip(some, x, y, strict=True):
        filled = "white" if row["result"]["extrapolated"] else colour(row)
        axes.plot(at, height, "o", color=colour(row), markerfacecolor=filled, markersize=7, zorder=3)
    texts = [f"{label(r)}\n{duration(seconds(r))}" for r in some]
    _write_beside(axes, texts, x, y, [colour(r) for r in some])
    _time_ticks(axes.xaxis)
    axes.set_xlabel("time of all pairs; open circles: extrapolated from some of the pairs")
    axes.set_ylabel("RMS error to the closed form, nats")
    axes.set_title(f"MI of all pairs of {case['N']} variables, {case['M']} samples: error against time")
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """Time against N and against M, with fitted exponents."""
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 4.0), sharey=True)
    for axes, axis, words in zip(panels, "NM", ("variables N", "samples M"), strict=True):
        fixed = "M" if axis == "N" else "N"
        ends, texts = [], []
        for series in (f"grid over {axis}", f"kde over {axis}"):
            for variant in variants(rows, series):
                some = of(rows, series, variant)
                sizes = [r["case"][axis] for r in some]
                axes.plot(
                    sizes,
                    [seconds(r) for r in some],
                    "o-",
                    color=colour(some[0]),
                    markersize=4,
                    linewidth=1.6,
                )
                power = exponent(some, axis)
                growth = f"$\\propto {axis}^{{{power:.2f}}}$" if power == power else ""
                ends.append(some[-1])
                texts.append(f"{label(some[0])}\n{growth} at {fixed} = {some[0]['case'][fixed]}")
        axes.set(xscale="log", yscale="log", xlabel=words)
        _size_ticks(axes, [r["case"][axis] for r in rows if r["case"]["series"].endswith(f"over {axis}")])
        _write_beside(
            axes,
            texts,
            [r["case"][axis] for r in ends],
            [seconds(r) for r in ends],
            [colour(r) for r in ends],
        )
    _time_ticks(panels[0].yaxis)
    panels[0].set_ylabel("time of all pairs")
    panels[0].set_title("Time against the number of variables")
    panels[1].set_title("and of samples")
    return figure


def roofline(rows: Sequence[Row]) -> Figure:
    """FLOP/s against FLOP for each byte of input and result, under what the machine can do at best."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    some = [r for r in rows if "over" in r["case"]["series"] and is_ours(r)]
    copy = float(np.median([r["result"]["copy_bytes_per_second"] for r in some]))
    intensities = [intensity(r) for r in some]
    low, high = 8.0, 3 * max(intensities)
    for estimator in dict.fromkeys(r["case"]["estimator"] for r in some):
        own = [r for r in some if r["case"]["estimator"] == estimator]
        precision = own[0]["case"]["precision"]
        roof = float(np.median([r["result"]["matmul_flop_per_second"] for r in own]))
        line = np.geomspace(low, high, 200)
        axes.plot(line, np.minimum(roof, copy * line), color=colour(own[0]), linewidth=1.4)
        axes.annotate(
            f"matrix products, {precision}: {_flops(roof)}",
            (roof / copy, roof),
            xytext=(4, 4),
            textcoords="offset points",
            color=colour(own[0]),
        )
        for axis, marker in (("N", "o"), ("M", "s")):
            points = of(own, f"{estimator} over {axis}")
            rates = [r["result"]["flop_per_second"] for r in points]
            axes.plot(
                [intensity(r) for r in points], rates, marker, color=colour(own[0]), markersize=5, alpha=0.8
            )
            if points:
                share = points[-1]["result"]["share_of_matmul_rate"]
                axes.annotate(
                    f"{axis} = {points[-1]['case'][axis]}: {share:.0%}",
                    (intensity(points[-1]), rates[-1]),
                    xytext=(0, -13),
                    textcoords="offset points",
                    color=colour(own[0]),
                    ha="center",
                    fontsize=8,
                )
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("operations for each byte of samples and results")
    axes.set_ylabel("operations/s")
    axes.set_title("Share of the machine's own matrix-product rate")
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


def _write_beside(
    axes: Axes, texts: Sequence[str], x: Sequence[float], y: Sequence[float], colours: Sequence[str]
) -> None:
    """Text beside each point, at the first place where it covers neither a point nor another text."""
    axes.figure.canvas.draw()  # places the axes, so that data have pixels
    radius = 5 * axes.figure.dpi / 72
    taken = [
        Bbox.from_bounds(left - radius, bottom - radius, 2 * radius, 2 * radius)
        for left, bottom in axes.transData.transform(np.column_stack([x, y]))
    ]
    for i in np.argsort(x)[::-1]:
        for place in PLACES:
            note = axes.annotate(
                texts[i],
                (x[i], y[i]),
                **place,
                textcoords="offset points",
                color=colours[i],
                fontsize=8,
                linespacing=1.15,
            )
            box = note.get_window_extent()
            if place is PLACES[-1] or not any(box.overlaps(other) for other in taken):
                break
            note.remove()
        taken.append(box)


PLACES: list[dict[str, Any]] = [
    {"xytext": (8, 0), "ha": "left", "va": "center"},
    {"xytext": (6, 5), "ha": "left", "va": "bottom"},
    {"xytext": (6, -5), "ha": "left", "va": "top"},
    {"xytext": (0, 7), "ha": "center", "va": "bottom"},
    {"xytext": (0, -7), "ha": "center", "va": "top"},
    {"xytext": (-8, 0), "ha": "right", "va": "center"},
    {"xytext": (8, 22), "ha": "left", "va": "center"},
    {"xytext": (8, -22), "ha": "left", "va": "center"},
]


def _time_ticks(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: _time_tick(value)))


def _time_tick(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:,.0f} {unit}"
    return f"{value / 1e-6:g} µs"


def _size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Every other power of two, written out, and room for the labels on the right."""
    ticks = sorted(set(sizes))[::2]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlim(min(sizes) * 0.8, max(sizes) * (max(sizes) / min(sizes)) ** 0.7)


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.2f} T/s" if rate >= 1e12 else f"{rate / 1e9:.0f} G/s"


SWEEPS = ("grid over N", "grid over M", "kde over N", "kde over M")
FIGURES = (("error", error, ("everyone",)), ("scaling", scaling, SWEEPS), ("roofline", roofline, SWEEPS))


def draw_all(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """PNG and SVG, `NAME-what.png`, of every figure whose series are all there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context(STYLE):
        for what, draw, needed in FIGURES:
            if not all(of(rows, series) for series in needed):
                continue
            figure = draw(rows)
            for suffix in ("png", "svg"):
                paths.append(folder / f"{name}-{what}.{suffix}")
                figure.savefig(paths[-1], metadata={"Date": None} if suffix == "svg" else None)
            plt.close(figure)
    return paths
