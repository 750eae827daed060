"""The page of quality: perplexity or rank correlation by method and ratio."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.publish import quality_plot
from benchmarks.publish.page import MODELS, conditions, write_page
from benchmarks.publish.plots import save
from benchmarks.quality.measure import DENSE
from benchmarks.quality.methods import CRITERIA, GROUPS, METHODS, REPAIRS, Method
from benchmarks.quality.scores import Score, Sheet, sheets
from benchmarks.quality.tasks import PROTOCOLS
from benchmarks.tables import duration, percent, table

REFERENCE = "flap, lstsq"  # the method that others are paired with
SUMMARY_PROTOCOLS = ("8x512", "dev", "python")
SPREAD_RATIO = 0.2
MEASURE = "python -m benchmarks.quality --data DIR --full"


def publish(path: Path, out: Path) -> None:
    found = sheets(path)
    first = list({sheet.model: sheet for sheet in reversed(found)}.values())[::-1]
    panels = [(s, [m for m in measured(s) if m.notable]) for s in first if len(s.ratios) > 1]
    sections = [
        "Quality of language models after structured pruning of their FFN neurons, by mikernels and by other packages: "
        "perplexity (lower is better) of SmolLM2-135M-Instruct, and Spearman correlation of cosine similarities with "
        "human scores of sentence pairs (higher is better) of all-MiniLM-L6-v2. Every layer drops the same share of "
        "neurons, except for methods with budgets. Methods are grouped by how they repair the loss; a group name in "
        f"italics heads each part of a table, and the best value of each ratio is bold. {MODELS}",
        *(["![Quality against the share of dropped neurons](quality.png)"] if panels else []),
        "## Summary",
    ]
    for sheet in found:
        methods = [m for m in measured(sheet) if m.notable]
        if sheet.protocol in SUMMARY_PROTOCOLS and methods:
            sections += [
                f"### {sheet.model} in {sheet.dtype}, {sheet.protocol}: notable methods",
                describe(sheet),
                quality_table(sheet, methods),
            ]
    sections += [
        "## Spread over criteria",
        f"How much the choice of the criterion matters at {percent(SPREAD_RATIO)}, by repair: the standard deviation "
        "over the criteria of the logarithm of perplexity (for encoders, of the correlation), and the ratio of the "
        "largest to the smallest perplexity.",
        spread_table(found),
        "## All methods",
    ]
    for sheet in found:
        methods = measured(sheet)
        error = (
            "over paired windows" if sheet.measure == "perplexity" else "by a jackknife over groups of pairs"
        )
        sections.append(f"### {sheet.model} in {sheet.dtype}, {sheet.protocol}")
        if not methods:
            continue
        sections += [
            f"{describe(sheet)} {conditions(list(sheet.rows.values()))}",
            f"In parentheses: the change from the dense model, with its standard error {error}. Times include every "
            "stage that a method needs when it runs alone, as the median over the ratios.",
            quality_table(sheet, methods, details=True),
        ]
        if any(name == REFERENCE for name, _ in sheet.scores):
            sections.append(f"Paired difference from {full_label(sheet, METHODS[REFERENCE])}:")
            sections.append(reference_table(sheet, methods))
    write_page(out / "quality.md", "Quality of pruned models", path.name, MEASURE, sections)
    if panels:
        save(quality_plot.draw, out / "quality", panels)


def measured(sheet: Sheet) -> list[Method]:
    """The methods that have rows, by group."""
    names = {name for name, _ in sheet.scores}
    return [m for group in GROUPS for m in METHODS.values() if m.group == group and m.name in names]


def quality_table(sheet: Sheet, methods: Sequence[Method], *, details: bool = False) -> str:
    """A line for each method, grouped; `details` adds the change from the dense model and the time."""
    best = {
        ratio: min(score.loss for (_, r), score in sheet.scores.items() if r == ratio)
        for ratio in sheet.ratios
    }

    def cell(name: str, ratio: float) -> str:
        score = sheet.scores.get((name, ratio))
        if score is None:
            return ""
        text = f"**{value(score)}**" if score.loss == best[ratio] else value(score)
        return f"{text} ({change(score, sheet.dense)})" if details else text

    lines = [
        ["parameters of the whole model", *(parameters(sheet, ratio) for ratio in sheet.ratios), ""],
        [DENSE, *[value(sheet.dense)] * len(sheet.ratios), ""],
    ]
    for group in GROUPS:
        of_group = [m for m in methods if m.group == group]
        if of_group:
            lines.append([f"*{group}*", *[""] * len(sheet.ratios), ""])
        for method in of_group:
            time = np.median([sum(r["result"]["seconds"].values()) for r in sheet.of(method.name)])
            lines.append(
                [label(sheet, method), *(cell(method.name, r) for r in sheet.ratios), duration(time)]
            )
    head = ["", *map(percent, sheet.ratios), "pruning takes"]
    width = len(head) if details else len(head) - 1
    return table(head[:width], [line[:width] for line in lines])


def parameters(sheet: Sheet, ratio: float) -> str:
    """The change of the number of parameters at a ratio of neurons, which other papers count."""
    rows = [row for (_, r), row in sheet.rows.items() if r == ratio]
    changes = sorted({round(r["result"]["parameters"] / r["case"]["parameters"] - 1, 2) for r in rows})
    ends = [f"{100 * change:+.0f} %" for change in (changes[0], changes[-1])]
    return " to ".join(dict.fromkeys(ends))


def reference_table(sheet: Sheet, methods: Sequence[Method]) -> str:
    """Paired differences from `REFERENCE` at the same ratio."""
    lines = []
    for method in methods:
        pairs = [(sheet.scores.get((method.name, r)), sheet.scores.get((REFERENCE, r))) for r in sheet.ratios]
        cells = ["" if a is None or b is None else change(a, b) for a, b in pairs]
        if any(cells) and method.name != REFERENCE:
            lines.append([full_label(sheet, method), *cells])
    return table(["", *map(percent, sheet.ratios)], lines)


def spread_table(found: Sequence[Sheet]) -> str:
    """For every repair that several criteria share, the spread over the criteria; small models first."""
    lines = []
    for sheet in sorted(found, key=lambda s: s.last["case"]["parameters"]):
        for repair, group in REPAIRS.items():
            keys = [(f"{criterion}, {repair}", SPREAD_RATIO) for criterion in CRITERIA]
            values = np.array([sheet.scores[key].value for key in keys if key in sheet.scores])
            if len(values) < 2:
                continue
            perplexity = sheet.measure == "perplexity"
            deviation = (np.log(values) if perplexity else values).std(ddof=1)
            factor = f"{values.max() / values.min():,.3g}" if perplexity else ""
            lines.append([sheet.model, sheet.protocol, group, str(len(values)), f"{deviation:.3f}", factor])
    return table(["", "protocol", "repair", "criteria", "deviation", "largest / smallest"], lines)


def label(sheet: Sheet, method: Method) -> str:
    """The label of a method, with its number of calibration windows where that is not the common one."""
    calibration = sheet.of(method.name)[-1]["case"]["calibration"]
    if calibration["windows"] == common_calibration(sheet)["windows"]:
        return method.label
    chosen = "chosen on " if method.refit else ""
    return f"{method.label} ({chosen}{calibration['windows']} windows)"


def full_label(sheet: Sheet, method: Method) -> str:
    return f"{label(sheet, method)}, {method.group}"


def common_calibration(sheet: Sheet) -> dict[str, Any]:
    """The calibration of `REFERENCE`, or else of most rows."""
    if reference := sheet.of(REFERENCE):
        return reference[-1]["case"]["calibration"]
    given = [r["case"]["calibration"] for r in sheet.rows.values() if "calibration" in r["case"]]
    return max(given, key=lambda c: sum(other["windows"] == c["windows"] for other in given))


def value(score: Score) -> str:
    if score.measure == "spearman":
        return f"{score.value:.3f}"
    digits = ".2f" if score.value < 100 else ",.0f" if score.value < 1e4 else ".0e"
    return format(score.value, digits)


def change(score: Score, other: Score) -> str:
    """The difference with its standard error; a factor if it is large."""
    difference, error = score.against(other)
    if score.measure == "spearman":
        return f"{difference:+.3f} ± {error:.3f}"
    if abs(difference) > math.log(3):
        digits = ",.3g" if difference < math.log(1e4) else ".0e"
        return f"x {format(math.exp(min(difference, 700)), digits)}"
    return f"{math.expm1(difference):+.1%} ± {error:.1%}".replace("%", " %")


def describe(sheet: Sheet) -> str:
    """Test data and calibration in words."""
    case, calibration = sheet.last["case"], common_calibration(sheet)
    test = (
        f"Perplexity over the {PROTOCOLS[sheet.protocol].description}"
        if sheet.measure == "perplexity"
        else f"Spearman correlation on the {case['task']} development pairs"
    )
    return (
        f"{test}; {sheet.model} in {sheet.dtype}. Calibrated on {calibration['windows']} windows of "
        f"{calibration['length']} tokens ({calibration['text']}) unless another number is given."
    )
