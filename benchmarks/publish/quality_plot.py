"""The plot of quality: a panel for each model and a line for each notable method, labeled where it ends."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.publish.plots import write_right
from benchmarks.quality.methods import METHODS, Method
from benchmarks.quality.scores import Sheet

OURS = ("#f48fb1", "#d81b60", "#880e4f", "#6a1b9a", "#ff8a65")
OTHERS = ("#1f77b4", "#17a2b8", "#5d6d7e", "#e07b00", "#8d6e63", "#2e8b57", "#9a8c00", "#7b6fd0")
WORST = {"perplexity": 6.0, "spearman": 0.15}
"""Where lines leave the plot: a multiple of the perplexity of the dense model, or a loss of correlation."""

TITLES = {"perplexity": "perplexity", "spearman": "Spearman correlation"}
TICKS = [t * 10**e for e in range(5) for t in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]  # of perplexity


class End(NamedTuple):
    """Where the line of a method ends, or leaves the plot."""

    text: str
    color: str
    x: float
    y: float
    leaves: bool


def draw(panels: Sequence[tuple[Sheet, Sequence[Method]]]) -> Figure:
    ours, others = itertools.cycle(OURS), itertools.cycle(OTHERS)
    colors = {m.name: next(ours if is_ours(m) else others) for m in METHODS.values() if m.notable}
    figure, axes = plt.subplots(1, len(panels), figsize=(8.2 * len(panels), 5.2), squeeze=False)
    for panel, (sheet, methods) in zip(axes[0], panels, strict=True):
        draw_panel(panel, sheet, methods, colors)
    return figure


def is_ours(method: Method) -> bool:
    return method.name.startswith("conditional")


def draw_panel(axes: Axes, sheet: Sheet, methods: Sequence[Method], colors: dict[str, str]) -> None:
    logarithmic = sheet.measure == "perplexity"
    dense, worst = sheet.dense.value, WORST[sheet.measure]
    limit = dense * worst if logarithmic else dense - worst
    ends = []
    for method in methods:
        points = [(0.0, dense)] + [
            (100 * r, s.value) for (name, r), s in sorted(sheet.scores.items()) if name == method.name
        ]
        x, y = map(np.array, zip(*points, strict=True))
        look = {"lw": 2.6, "zorder": 3} if is_ours(method) else {"zorder": 2}
        axes.plot(x, y, "o-", color=colors[method.name], **look)
        text = f"{method.label}, {method.group}"
        ends.append(End(text, colors[method.name], *line_end(x, y, limit, logarithmic)))
    axes.axhline(dense, color="black", lw=0.7, ls=":")
    shown = [dense, *(end.y for end in ends)]
    if logarithmic:
        axes.set(yscale="log", ylim=(dense * 0.96, min(limit, max(shown) * 1.05)))
        low, high = axes.get_ylim()
        ticks = [t for t in TICKS if low <= t <= high]
        axes.set_yticks(ticks, [f"{t:,g}" for t in ticks])
        axes.minorticks_off()
    else:
        axes.set(ylim=(max(limit, min(shown) - 0.005), max(shown) + 0.01))
    last = 100 * max(sheet.ratios, default=0.5)
    axes.set(xlim=(0, last), xticks=[0, *(100 * r for r in sheet.ratios)], xlabel="FFN neurons dropped, %")
    axes.set_title(f"{sheet.model}: {TITLES[sheet.measure]}, {sheet.last['case']['task']}")
    right = [end for end in ends if not end.leaves and end.x == last]
    write_right(axes, [e.text for e in right], [e.y for e in right], [e.color for e in right])
    write_inside(axes, [end for end in ends if end.leaves], upward=logarithmic)


def line_end(x: np.ndarray, y: np.ndarray, limit: float, logarithmic: bool) -> tuple[float, float, bool]:
    """The end of a line; or the point where it crosses the limit, and True."""
    beyond = np.flatnonzero(y > limit if logarithmic else y < limit)
    if len(beyond) == 0:
        return float(x[-1]), float(y[-1]), False
    i = int(beyond[0])
    before, after, at = (math.log(v) if logarithmic else v for v in (y[i - 1], y[i], limit))
    return float(x[i - 1] + (at - before) / (after - before) * (x[i] - x[i - 1])), limit, True


def write_inside(axes: Axes, ends: Sequence[End], *, upward: bool) -> None:
    """Label lines where they leave the plot, one below the other."""
    for step, end in enumerate(sorted(ends, key=lambda e: -e.x)):
        offset = 10 + 14 * step
        axes.annotate(
            end.text,
            (end.x, 1 if upward else 0),
            (5, -offset if upward else offset),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=end.color,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
