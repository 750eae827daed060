"""Tables and a plot of stored rows: perplexity or rank correlation by method and ratio.

    python -m benchmarks.quality.report

Writes `quality.md`, `quality.png` and `quality.svg`, and the README's block between its markers. Of several rows of a
method at one ratio the last one counts.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.measure import DENSE
from benchmarks.quality.methods import GROUPS, METHODS, Method
from benchmarks.quality.scores import Score, Sheet, sheets
from benchmarks.readme import write_block
from benchmarks.record import RESULTS
from benchmarks.throughput.tables import duration, table

REFERENCE = "flap, lstsq"
COLOURS = ("#1f77b4", "#17a2b8", "#5d6d7e", "#e07b00", "#8d6e63", "#2e8b57", "#9a8c00", "#7b6fd0")
OURS = ("#f48fb1", "#d81b60", "#880e4f", "#6a1b9a")
HIGHEST = 6.0
"""Perplexity at the top of the plot, as a multiple of the dense model's; lines leave it there."""


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
    """With the windows of calibration where they are fewer than others had."""
    cases = [case for (name, _), case in sheet.cases.items() if name == method.name]
    given = cases[-1]["calibration"]
    most = max(case["calibration"]["windows"] for case in sheet.cases.values() if "calibration" in case)
    if given["windows"] == most:
        return method.label
    chosen = "chosen on " if method.refit else ""
    return f"{method.label} ({chosen}{given['windows']} windows)"


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
    given = [c["calibration"] for c in sheet.cases.values() if "calibration" in c]
    calibration = max(given, key=lambda c: c["windows"])
    windows, _, length = sheet.protocol.partition("x")
    test = (
        f"Perplexity over {'the first ' if sheet.protocol == '8x512' else ''}{windows} windows of {length} tokens of "
        f"{case['task']}'s test text{'' if sheet.protocol == '8x512' else ', spread evenly'}"
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
        f"commit {last['commit']}, {last['date']}."
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
    """What the README shows: the plot, and a table a model of the notable methods."""
    parts = [f"![Quality against the share of neurons dropped]({plot_path})"]
    for sheet in first_sheets(found):
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
    figure, axes = plt.subplots(
        1, len(panels), figsize=(8.2 * len(panels), 5.2), layout="constrained", squeeze=False
    )
    for axis, sheet in zip(axes[0], panels, strict=True):
        _panel(axis, sheet)
    for suffix in ("png", "svg"):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(out / f"quality.{suffix}", dpi=150, metadata=metadata)
    plt.close(figure)


def _panel(axis, sheet: Sheet) -> None:  # type: ignore[no-untyped-def]
    logarithmic = sheet.measure == "perplexity"
    dense = sheet.dense.value
    methods = [m for m in measured(sheet) if m.notable]
    top = dense * HIGHEST if logarithmic else math.inf
    ours, others = iter(OURS), iter(COLOURS)
    ends = []
    for method in methods:
        strong = "conditional" in method.name
        colour = next(ours if strong else others, "#999999")
        points = [(0.0, dense)] + [
            (100 * r, s.value) for (name, r), s in sorted(sheet.scores.items()) if name == method.name
        ]
        x, y = map(np.array, zip(*points, strict=True))
        line = {
            "color": colour,
            "marker": "o",
            "ms": 4,
            "lw": 2.4 if strong else 1.5,
            "zorder": 3 if strong else 2,
        }
        axis.plot(x, y, **line)
        ends.append((method, colour, *_end(x, y, top)))
    axis.axhline(dense, color="black", lw=0.7, ls=":")
    last = 100 * max(sheet.ratios, default=0.5)
    if logarithmic:
        axis.set_yscale("log")
        seen = [y for *_, y, _ in ends]
        axis.set_ylim(dense * 0.96, min(top, max(seen, default=dense * 2) * 1.1))
        low, high = axis.get_ylim()
        ticks = [
            t
            for t in (10, 12, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 100, 120, 150, 200, 300)
            if low <= t <= high
        ]
        axis.set_yticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
    axis.set_xlim(0, last)
    axis.set_xticks([0, *(100 * r for r in sheet.ratios)])
    axis.set_xlabel("FFN neurons dropped, %")
    axis.set_title(f"{sheet.model}: {sheet.measure}, {sheet.last['case']['task']}", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eceef1")
    right = [e for e in ends if e[2] == last]
    _label_right(axis, right, logarithmic)
    _label_top([e for e in ends if e[2] < last], axis)


def _end(x: np.ndarray, y: np.ndarray, top: float) -> tuple[float, float, bool]:
    """Where a line ends or leaves the plot at the top."""
    above = np.flatnonzero(y > top)
    if len(above) == 0:
        return float(x[-1]), float(y[-1]), False
    i = int(above[0])
    share = (math.log(top) - math.log(y[i - 1])) / (math.log(y[i]) - math.log(y[i - 1]))
    return float(x[i - 1] + share * (x[i] - x[i - 1])), top, True


def _label_right(axis, ends, logarithmic: bool, gap: float = 0.045) -> None:  # type: ignore[no-untyped-def]
    """Beside the ends of the lines, moved apart where they would overlap."""
    low, high = (math.log(v) if logarithmic else v for v in axis.get_ylim())
    ends = sorted(ends, key=lambda e: e[3])
    heights = [((math.log(y) if logarithmic else y) - low) / (high - low) for _, _, _, y, _ in ends]
    places = list(heights)
    for _ in range(200):  # each pair that is too close shares what is missing
        for i in range(len(places) - 1):
            missing = gap - (places[i + 1] - places[i])
            if missing > 0:
                places[i] -= missing / 2
                places[i + 1] += missing / 2
    for (method, colour, *_), height, place in zip(ends, heights, places, strict=True):
        axis.annotate(
            f"{method.label}, {method.group}",
            (1, height),
            (1.025, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _label_top(ends, axis) -> None:  # type: ignore[no-untyped-def]
    """Under the points where lines leave the plot, each a step lower, to the right of its line."""
    for step, (method, colour, x, *_) in enumerate(sorted(ends, key=lambda e: -e[2])):
        axis.annotate(
            f"{method.label}, {method.group}",
            (x, 1),
            (4, -10 - 14 * step),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
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
