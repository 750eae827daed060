"""The charts of the page, as SVG in data URIs: an image can run nothing and load nothing."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pruning.report.comparison import MAX_GROWTH
from pruning.report.result import Layer, Result
from pruning.report.swept import Row, dropped_share, growth

INK, GRAY, ACCENT = "#2b2f36", "#7d828b", "#b3541e"
MAP_COLORS = "PuOr_r"
"""From below the null to above it; what is far above is dark, so that it can be read without color."""
MARKS = "osD^vP*X"
"""By text or result, in addition to colors."""
METADATA = ("Creator", "Date", "Format", "Type")
"""What matplotlib would write into each file."""
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b9bec6",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mikernels",  # equal results give equal pages
    "text.color": INK,
    "text.parse_math": False,  # names of texts and models are no formulas
    "xtick.color": INK,
    "ytick.color": INK,
}


def information_map(layer: Layer) -> str:
    """The mutual information of the neurons that are shown, with a mark at the edge for those that were dropped.

    Colors are the nats above the null, so that independent pairs are white.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.05, 0.02, 0.73, 0.9))
        excess = np.array(layer.mi) - layer.null_mi
        np.fill_diagonal(excess, np.nan)
        top = max(float(np.nanquantile(excess, 0.995)), layer.null_mi, 1e-3)
        image = axes.imshow(
            excess, cmap=MAP_COLORS, norm=Normalize(-top, top), interpolation="none", aspect="equal"
        )
        marks = np.array(layer.is_dropped, dtype=float)
        for place, strip in (
            ((0, 1.015, 1, 0.03), marks[None]),
            ((-0.045, 0, 0.03, 1), marks[:, None]),
        ):
            edge = axes.inset_axes(place)
            edge.imshow(strip, cmap="Greys", vmin=0, vmax=1, interpolation="none", aspect="auto")
            edge.set_xticks([])
            edge.set_yticks([])
            edge.grid(visible=False)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        bar = figure.colorbar(image, cax=figure.add_axes((0.82, 0.1, 0.03, 0.72)))
        bar.set_label("nats above independent neurons")
        bar.ax.grid(visible=False)
        bar.ax.set_ylim(-layer.null_mi, top)

    return _svg(draw, (5.0, 4.2))


def damage_curve(layer: Layer) -> str:
    """What least squares cannot restore of the output of the layer, by the number of dropped neurons, and the cut."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.13, 0.15, 0.84, 0.8))
        cut = layer.n_neurons - layer.n_kept
        axes.plot(layer.steps, [100 * share for share in layer.damage], color=ACCENT, linewidth=2)
        axes.axvline(cut, color=INK, linewidth=1.2, linestyle="--")
        at = float(np.interp(cut, layer.steps, layer.damage))
        axes.plot([cut], [100 * at], "o", color=INK)
        axes.annotate(
            f"cut: {cut:,} dropped, {at:.1%}",
            (cut, 100 * at),
            (-8 if cut > layer.steps[-1] / 2 else 8, 6),
            textcoords="offset points",
            ha="right" if cut > layer.steps[-1] / 2 else "left",
        )
        axes.set_xlim(0, max(layer.steps[-1], cut) * 1.02)
        axes.set_ylim(0)
        axes.margins(y=0.15)
        axes.set_xlabel(f"dropped neurons, of {layer.n_neurons:,}")
        axes.set_ylabel("% of the output's variance lost")

    return _svg(draw, (5.0, 3.4))


def quality_by_ratio(results: Sequence[Result], sweep: Sequence[Row]) -> str | None:
    """Perplexity on each text against the share of neurons dropped: of the rows of a sweep, joined by lines, and of the
    results; None if there is nothing to compare."""
    texts = list(dict.fromkeys([*(sweep[0]["perplexity"] if sweep else ()), *_texts(results)]))
    if not texts or len(sweep) + len(results) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.12, 0.12, 0.85, 0.85))
        colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
        for i, text in enumerate(texts):
            style = {"color": colors[i % len(colors)], "marker": MARKS[i % len(MARKS)]}
            _draw_sweep(axes, sweep, text, style)
            _draw_results(axes, results, text, style, beside=f"{text}, saved result" if sweep else text)
        axes.axhline(100 * (MAX_GROWTH - 1), color=GRAY, linestyle=":", linewidth=1.5)
        axes.annotate(
            "past this, repair is not enough",
            (0, 100 * (MAX_GROWTH - 1)),
            (4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=GRAY,
            fontsize=9,
        )
        if axes.get_ylim()[1] > 1000:
            axes.set_yscale("symlog", linthresh=100)
        axes.set_xlim(0)
        axes.set_xlabel("% of the neurons dropped")
        axes.set_ylabel("% growth of the perplexity")
        axes.legend(fontsize=9)

    return _svg(draw, (6.4, 4.0))


def _draw_sweep(axes: Axes, sweep: Sequence[Row], text: str, style: dict[str, Any]) -> None:
    """The perplexity on a text at each ratio, with its standard error."""
    rows = [row for row in sweep if math.isfinite(growth(sweep, row, text)[0])]
    if rows:
        grown, errors = np.array([growth(sweep, row, text) for row in rows]).T
        shares = [100 * dropped_share(sweep, row) for row in rows]
        bars = 100 * np.nan_to_num(errors) * grown
        axes.errorbar(shares, 100 * (grown - 1), bars, markersize=4, capsize=2, label=text, **style)


def _draw_results(
    axes: Axes, results: Sequence[Result], text: str, style: dict[str, Any], *, beside: str
) -> None:
    """A ring for each result, with its number if there are several; `beside` is the name in the legend."""
    points = [
        (str(i), 100 * result.dropped_share, 100 * (q.growth - 1))
        for i, result in enumerate(results, 1)
        for q in result.quality
        if q.text == text and math.isfinite(q.growth)
    ]
    if not points:
        return
    _, shares, grown = zip(*points, strict=True)
    ring: dict[str, Any] = {
        "linestyle": "",
        "markersize": 11,
        "markeredgewidth": 2,
        "markerfacecolor": "none",
    }
    axes.plot(shares, grown, label=beside, **ring, **style)
    for name, x, y in points if len(results) > 1 else ():
        axes.annotate(name, (x, y), (9, 3), textcoords="offset points", color=style["color"])


def _texts(results: Sequence[Result]) -> list[str]:
    return [q.text for result in results for q in result.quality if math.isfinite(q.growth)]


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    """The figure that `draw` fills, as a data URI; touches no state of matplotlib beyond this call."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode()
