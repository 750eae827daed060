"""Tables and a plot of stored rows: perplexity or rank correlation by method and ratio.

    python -m benchmarks.quality.report

Writes `quality.md`, `quality.png` and `quality.svg`, and the README's block between its markers. Of several rows of a
method at one ratio the last one counts.
"""

import argparse
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.measure import DENSE
from benchmarks.quality.methods import GROUPS, METHODS, Method
from benchmarks.quality.scores import Score, Sheet, sheets
from benchmarks.quality.tasks import PROTOCOLS
from benchmarks.readme import write_block
from benchmarks.record import RESULTS
from benchmarks.throughput.tables import duration, table

REFERENCE = "flap, lstsq"
COLOURS = ("#1f77b4", "#17a2b8", "#5d6d7e", "#e07b00", "#8d6e63", "#2e8b57", "#9a8c00", "#7b6fd0")
OURS = ("#f48fb1", "#d81b60", "#880e4f", "#6a1b9a", "#ff8a65")
WORST = {"perplexity": 6.0, "spearman": 0.15}
"""Where lines leave the plot: as a multiple of the dense model's perplexity, or as a loss of correlation."""

TITLES = {"perplexity": "perplexity", "spearman": "Spearman's correlation"}


def measured(sheet: Sheet) -> list[Method]:
    """The methods that have rows, group by group."""
    names = {name for name, _ in sheet.scores}
    return [m for group in GROUPS for m in METHODS.values() if m.group == group and m.name in names]


def quality_table(sheet: Sheet, methods: Sequence[Method], *, brief: bool = False) -> str:
    """A line a method, grouped, with the change from the dense model; `brief` without it, and without times."""
    best = {
        ratio: min((s.better_first for (_, r), s in sheet.scores.items() if r == ratio), default=math.nan)
        for ratio in sheet.ratios
    }

    def cell(name: str, ratio: float) -> str:
        score = sheet.scores.get((name, ratio))
        if score is None:
            return ""
        text = value(score)
        if score.better_first == best[ratio]:
            text = f"**{text}**"
        return text if brief else f"{text} ({change(score, sheet.dense)})"

    blank = [] if brief else [""]
    head = ["", *map(percent, sheet.ratios), *([] if brief else ["pruning takes"])]
    lines = [[DENSE, *[value(sheet.dense)] * len(sheet.ratios), *blank]]
    for group in GROUPS:
        some = [m for m in methods if m.group == group]
        if some:
            lines.append([f"*{group}*", *[""] * len(sheet.ratios), *blank])
        for method in some:
            time = [] if brief else [duration(sheet.seconds(method.name))]
            lines.append([label(sheet, method), *(cell(method.name, r) for r in sheet.ratios), *time])
    return table(head, lines)


def reference_table(sheet: Sheet, methods: Sequence[Method], reference: str) -> str:
    """Paired differences from one method at the same ratio."""
    lines = []
    for method in methods:
        cells = []
        for ratio in sheet.ratios:
            pair = [sheet.scores.get((name, ratio)) for name in (method.name, reference)]
            cells.append("" if None in pair or method.name == reference else change(*pair))  # type: ignore[arg-type]
        if any(cells):
            lines.append([full_label(sheet, method), *cells])
    return table(["", *map(percent, sheet.ratios)], lines)


def label(sheet: Sheet, method: Method) -> str:
    """With the windows of calibration where they are not those that most had."""
    cases = [case for (name, _), case in sheet.cases.items() if name == method.name]
    given = cases[-1]["calibration"]
    if given["windows"] == common_calibration(sheet)["windows"]:
        return method.label
    chosen = "chosen on " if method.refit else ""
    return f"{method.label} ({chosen}{given['windows']} windows)"


def common_calibration(sheet: Sheet) -> dict[str, Any]:
    """That of most rows."""
    given = [case["calibration"] for case in sheet.cases.values() if "calibration" in case]
    return max(given, key=lambda c: sum(other["windows"] == c["windows"] for other in given))


def full_label(sheet: Sheet, method: Method) -> str:
    return f"{label(sheet, method)}, {method.group}"


def percent(ratio: float) -> str:
    return f"{100 * ratio:g} %"


def value(score: Score) -> str:
    if score.measure == "spearman":
        return f"{score.value:.3f}"
    digits = ".2f" if score.value < 100 else ",.0f" if score.value < 1e4 else ".0e"
    return format(score.value, digits)


def change(score: Score, other: Score) -> str:
    """With its standard error; as a factor where it is large."""
    difference, error = score.against(other)
    if score.measure == "spearman":
        return f"{difference:+.3f} ± {error:.3f}"
    if abs(difference) > math.log(3):
        return (
            f"x {math.exp(difference):,.3g}"
            if difference < math.log(1e4)
            else f"x {math.exp(min(difference, 700)):.0e}"
        )
    return f"{math.expm1(difference):+.1%} ± {error:.1%}".replace("%", " %")


def conditions(sheet: Sheet) -> str:
    last, case = sheet.last, sheet.last["case"]
    calibration = common_calibration(sheet)
    test = (
        f"Perplexity over {PROTOCOLS[sheet.protocol].said}"
        if sheet.measure == "perplexity"
        else f"Spearman's correlation of cosines with the scores of the {case['task']} development pairs"
    )
    seeds = sorted({c["seed"] for c in sheet.cases.values()})
    return (
        f"{test}; {sheet.model} in {case['dtype']}. Calibrated on {calibration['windows']} windows of "
        f"{calibration['length']} tokens ({calibration['text']}) where no other number is given. Every layer "
        f"drops the same share, but where budgets are named. Seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}; {last['machine']['threads']} thread"
        f"{'s' * (last['machine']['threads'] > 1)} of {last['machine']['cpu']}, torch {last['versions']['torch']}, "
        f"commit{'s' * (len(sheet.commits) > 1)} {', '.join(sheet.commits)}, {last['date']}."
    )


def text(found: Sequence[Sheet], reference: str) -> str:
    parts = ["# Quality of pruned models"]
    parts.append("Made by `python -m benchmarks.quality.report` from `quality.jsonl`.")
    parts.append("![Quality against the share of neurons dropped](quality.png)")
    for sheet in found:
        methods = measured(sheet)
        parts.append(f"## {sheet.model}, {sheet.protocol}")
        if not methods:
            continue
        error = (
            "over paired windows" if sheet.measure == "perplexity" else "by a jackknife over groups of pairs"
        )
        parts.append(
            f"{conditions(sheet)} In parentheses the change from the dense model, with its standard error {error}. "
            "Times count all that a method needs when it runs alone; the middle one of the ratios."
        )
        parts.append(quality_table(sheet, methods))
        if any(name == reference for name, _ in sheet.scores):
            parts.append(f"Paired against {full_label(sheet, METHODS[reference])}:")
            parts.append(reference_table(sheet, methods, reference))
    return "\n\n".join(parts) + "\n"


def first_sheets(found: Sequence[Sheet]) -> list[Sheet]:
    """One a model: of its first protocol."""
    return list({sheet.model: sheet for sheet in reversed(found)}.values())[::-1]


def summary(found: Sequence[Sheet], plot_path: str) -> str:
    """What the README shows: the plot, and tables of the notable methods, also on another text."""
    parts = [f"![Quality against the share of neurons dropped]({plot_path})"]
    for sheet in first_sheets(found) + [sheet for sheet in found if sheet.protocol == "python"]:
        methods = [m for m in measured(sheet) if m.notable]
        if methods:
            parts += [quality_table(sheet, methods, brief=True), conditions(sheet)]
    return "\n\n".join(parts)


def plot(found: Sequence[Sheet], out: Path) -> None:
    """A panel a model, a line a notable method, labelled where it ends."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mikernels"  # so that equal rows give equal files
    import matplotlib.pyplot as plt

    panels = first_sheets(found)
    ours, others = itertools.cycle(OURS), itertools.cycle(COLOURS)
    colours = {
        m.name: next(ours if m.name.startswith("conditional") else others)
        for m in METHODS.values()
        if m.notable
    }
    figure, axes = plt.subplots(
        1, len(panels), figsize=(8.2 * len(panels), 5.2), layout="constrained", squeeze=False
    )
    for axis, sheet in zip(axes[0], panels, strict=True):
        _panel(axis, sheet, colours)
    for suffix in ("png", "svg"):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(out / f"quality.{suffix}", dpi=150, metadata=metadata)
    plt.close(figure)


def _panel(axis, sheet: Sheet, colours: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    logarithmic = sheet.measure == "perplexity"
    dense, worst = sheet.dense.value, WORST[sheet.measure]
    limit = dense * worst if logarithmic else dense - worst
    ends = []
    for method in [m for m in measured(sheet) if m.notable]:
        strong = method.name.startswith("conditional")
        points = [(0.0, dense)] + [
            (100 * r, s.value) for (name, r), s in sorted(sheet.scores.items()) if name == method.name
        ]
        x, y = map(np.array, zip(*points, strict=True))
        width, order = (2.6, 3) if strong else (1.6, 2)
        axis.plot(x, y, color=colours[method.name], marker="o", ms=4, lw=width, zorder=order)
        ends.append((method, *_end(x, y, limit, logarithmic)))
    axis.axhline(dense, color="black", lw=0.7, ls=":")
    seen = [dense, *(y for *_, y in ends)]
    if logarithmic:
        axis.set_yscale("log")
        axis.set_ylim(dense * 0.96, min(limit, max(seen) * 1.05))
        low, high = axis.get_ylim()
        ticks = [t * 10**e for e in range(5) for t in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
        ticks = [t for t in ticks if low <= t <= high]
        axis.set_yticks(ticks, [f"{t:,g}" for t in ticks])
        axis.minorticks_off()
    else:
        axis.set_ylim(max(limit, min(seen) - 0.005), max(seen) + 0.01)
    last = 100 * max(sheet.ratios, default=0.5)
    axis.set_xlim(0, last)
    axis.set_xticks([0, *(100 * r for r in sheet.ratios)])
    axis.set_xlabel("FFN neurons dropped, %")
    axis.set_title(
        f"{sheet.model}: {TITLES[sheet.measure]}, {sheet.last['case']['task']}", loc="left", fontsize=11
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eceef1")
    _label_right(axis, [e for e in ends if e[2] != limit and e[1] == last], colours, logarithmic)
    _label_left(axis, [e for e in ends if e[2] == limit], colours, upwards=logarithmic)


def _end(x: np.ndarray, y: np.ndarray, limit: float, logarithmic: bool) -> tuple[float, float]:
    """Where a line ends or leaves the plot."""
    beyond = np.flatnonzero(y > limit if logarithmic else y < limit)
    if len(beyond) == 0:
        return float(x[-1]), float(y[-1])
    i = int(beyond[0])
    before, after, at = (math.log(v) if logarithmic else v for v in (y[i - 1], y[i], limit))
    return float(x[i - 1] + (at - before) / (after - before) * (x[i] - x[i - 1])), limit


def _label_right(axis, ends, colours, logarithmic: bool, gap: float = 0.05) -> None:  # type: ignore[no-untyped-def]
    """Beside the ends of the lines, moved apart where they would overlap."""
    low, high = (math.log(v) if logarithmic else v for v in axis.get_ylim())
    ends = sorted(ends, key=lambda e: e[2])
    heights = [((math.log(y) if logarithmic else y) - low) / (high - low) for *_, y in ends]
    places = list(heights)
    for _ in range(300):  # each pair that is too close shares what is missing, within the axis
        for i in range(len(places) - 1):
            missing = max(0.0, gap - (places[i + 1] - places[i]))
            places[i] -= missing / 2
            places[i + 1] += missing / 2
        if places:
            places[0], places[-1] = max(places[0], 0.0), min(places[-1], 1.0)
    for (method, *_), height, place in zip(ends, heights, places, strict=True):
        axis.annotate(
            f"{method.label}, {method.group}",
            (1, height),
            (1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colours[method.name],
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[method.name],
                "lw": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _label_left(axis, ends, colours, *, upwards: bool) -> None:  # type: ignore[no-untyped-def]
    """Where lines leave the plot, each a step further in."""
    for step, (method, x, _) in enumerate(sorted(ends, key=lambda e: -e[1])):
        offset = 10 + 14 * step
        axis.annotate(
            f"{method.label}, {method.group}",
            (x, 1 if upwards else 0),
            (5, -offset if upwards else offset),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=colours[method.name],
            fontsize=9,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=Path, default=RESULTS / "quality.jsonl")
    parser.add_argument("--reference", choices=METHODS, metavar="METHOD", default=REFERENCE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=RESULTS.parents[1] / "README.md")
    args = parser.parse_args()
    found = sheets(args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "quality.md").write_text(text(found, args.reference), encoding="utf-8")
    plot(found, args.out)
    picture = os.path.relpath(args.out / "quality.png", args.readme.parent)
    write_block(args.readme, "quality", summary(found, Path(picture).as_posix()))


if __name__ == "__main__":
    main()
