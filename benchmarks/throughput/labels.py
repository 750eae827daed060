"""Texts beside points, where they cover nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

PLACES: list[dict[str, Any]] = [
    {"xytext": (7, 0), "ha": "left", "va": "center"},
    {"xytext": (0, 7), "ha": "center", "va": "bottom"},
    {"xytext": (0, -7), "ha": "center", "va": "top"},
    {"xytext": (5, 5), "ha": "left", "va": "bottom"},
    {"xytext": (5, -5), "ha": "left", "va": "top"},
    {"xytext": (-5, 5), "ha": "right", "va": "bottom"},
    {"xytext": (-7, 0), "ha": "right", "va": "center"},
    {"xytext": (7, 0), "ha": "left", "va": "center"},  # where there is no room at all
]
"""Where a text may stand by its point, the best first."""


def write_beside(
    axes: Axes, texts: Sequence[str], x: Sequence[float], y: Sequence[float], colours: Sequence[str]
) -> None:
    """Each text at the first place inside the axes where it covers no line, no point and no other text."""
    axes.figure.canvas.draw()  # places the axes, so that data have pixels
    radius = 4 * axes.figure.dpi / 72
    taken = [
        Bbox.from_bounds(left - radius, bottom - radius, 2 * radius, 2 * radius)
        for line in axes.lines
        for left, bottom in _along(axes.transData.transform(line.get_xydata()))
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
            inside = axes.bbox.x0 <= box.x0 and axes.bbox.y0 <= box.y0
            if place is PLACES[-1] or (inside and not any(box.overlaps(other) for other in taken)):
                break
            note.remove()
        taken.append(box)


def _along(points: np.ndarray) -> np.ndarray:
    """Points `[n, 2]` of a line, and nine others between each two of them."""
    steps = np.linspace(0, len(points) - 1, 10 * (len(points) - 1) + 1)
    return np.stack([np.interp(steps, np.arange(len(points)), column) for column in points.T], axis=1)
