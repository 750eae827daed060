"""The style of all plots, the files they are saved to, and text placed beside their points."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

INK, GRAY = "#2b2f36", "#7d828b"
COLORS = {
    "grid": "#1f5fa8",
    "adaptive": "#c2185b",
    "kde": "#2a8f82",
    "renyi2": "#7a5aa6",
    "b-spline": "#b9772c",
    "linear": "#8d99a6",
}
"""By estimator."""

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
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
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "svg.hashsalt": "mikernels",  # equal rows give equal files
    "text.color": INK,
    "xtick.color": INK,
    "xtick.minor.bottom": False,
    "ytick.color": INK,
    "ytick.minor.left": False,
}

PLACES: list[dict[str, Any]] = [
    {"xytext": (7, 0), "ha": "left", "va": "center"},
    {"xytext": (0, 7), "ha": "center", "va": "bottom"},
    {"xytext": (0, -7), "ha": "center", "va": "top"},
    {"xytext": (5, 5), "ha": "left", "va": "bottom"},
    {"xytext": (5, -5), "ha": "left", "va": "top"},
    {"xytext": (-5, 5), "ha": "right", "va": "bottom"},
    {"xytext": (-7, 0), "ha": "right", "va": "center"},
    {"xytext": (7, 0), "ha": "left", "va": "center"},  # if nothing fits
]
"""Places for a text beside its point, in order of preference."""


def save(draw: Callable[..., Figure], path: Path, *arguments: Any) -> None:
    """Save the figure that `draw` makes of its arguments as `path` with `.png` and `.svg` appended."""
    with plt.rc_context(STYLE):
        figure = draw(*arguments)
        figure.savefig(f"{path}.png")
        figure.savefig(f"{path}.svg", metadata={"Date": None})
        plt.close(figure)


def size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic x axis with these sizes written out."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])


def write_beside(
    axes: Axes, texts: Sequence[str], x: Sequence[float], y: Sequence[float], colors: Sequence[str]
) -> None:
    """Write each text at the first place inside the axes where it covers no line, point or other text."""
    axes.figure.canvas.draw()  # fixes the pixels of data coordinates
    radius = 4 * axes.figure.dpi / 72
    taken = [
        Bbox.from_bounds(left - radius, bottom - radius, 2 * radius, 2 * radius)
        for line in axes.lines
        for left, bottom in _densified(axes.transData.transform(line.get_xydata()))
    ]
    for i in np.argsort(x)[::-1]:
        for place in PLACES:
            note = axes.annotate(
                texts[i],
                (x[i], y[i]),
                **place,
                textcoords="offset points",
                color=colors[i],
                fontsize=8,
                linespacing=1.15,
            )
            box = note.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and axes.bbox.y0 <= box.y0
            if place is PLACES[-1] or (inside and not any(box.overlaps(other) for other in taken)):
                break
            note.remove()
        taken.append(box)


def write_right(
    axes: Axes, texts: Sequence[str], y: Sequence[float], colors: Sequence[str], gap: float = 0.05
) -> None:
    """Write texts right of the axes at heights `y`, moved apart where they would overlap, each with a line to its y."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((axes.get_xlim()[1], value))[1] for value in y])
    order = np.argsort(heights)
    places = heights[order]
    for _ in range(300):  # neighbors that are too close move apart by what is missing, within the axes
        for i in range(len(places) - 1):
            missing = max(0.0, gap - (places[i + 1] - places[i]))
            places[i] -= missing / 2
            places[i + 1] += missing / 2
        places[:1], places[-1:] = places[:1].clip(min=0.0), places[-1:].clip(max=1.0)
    for i, place in zip(order, places, strict=True):
        axes.annotate(
            texts[i],
            (1, heights[i]),
            (1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colors[i],
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colors[i], "lw": 0.6, "relpos": (0, 0.5), "shrinkB": 0},
        )


def _densified(points: np.ndarray) -> np.ndarray:
    """The points `[n, 2]` of a line, and nine more between each two of them."""
    steps = np.linspace(0, len(points) - 1, 10 * (len(points) - 1) + 1)
    return np.stack([np.interp(steps, np.arange(len(points)), column) for column in points.T], axis=1)
