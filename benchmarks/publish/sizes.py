"""The page of sizes: how far criteria are apart in small and in larger models."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.publish.page import MODELS, conditions, latest, passage, write_page
from benchmarks.quality.methods import CRITERIA, METHODS, REPAIRS
from benchmarks.record import Row
from benchmarks.tables import percent, table

MEASURE = "python -m benchmarks.quality.sizes --data DIR --model NAME=PATH"
BLIND = ("random", "magnitude")
"""Criteria that do not look at activations."""


class Sheet(NamedTuple):
    """What rows must have in common to be compared."""

    tokens: int
    passage: int
    sources: str
    sample_size: int
    windows: int
    model: str


def publish(path: Path, out: Path) -> None:
    sheets: dict[Sheet, list[Row]] = {}
    for row in sorted(latest(path), key=lambda r: r["case"]["parameters"]):
        case, calibration = row["case"], row["case"]["calibration"]
        sheet = Sheet(
            tokens=calibration["tokens"],
            passage=passage(calibration),
            sources=calibration["sources"],
            sample_size=case["sample_size"],
            windows=case["windows"],
            model=case["model"],
        )
        sheets.setdefault(sheet, []).append(row)
    # Models that were calibrated alike stay in order of their size.
    sheets = dict(sorted(sheets.items(), key=lambda item: (-item[0].tokens, -item[0].passage)))
    sections = [
        "Does the choice of the criterion matter in small models and hardly in large ones, as arXiv 2406.00030 says? "
        "Every criterion drops the same share of neurons of every layer, from the same calibration, and is measured on "
        "the four texts of [`texts.md`](texts.md). Below is the geometric mean over the texts of perplexity "
        "relative to the dense model, in parentheses the standard error of its logarithm over paired windows. "
        + MODELS
        + (
            " So far one model has been measured, which answers nothing."
            if len({sheet.model for sheet in sheets}) == 1
            else ""
        ),
        "## Spread over criteria",
        "The standard deviation over the criteria of the logarithm of perplexity, by text and for the mean over the "
        "texts, there with its standard error by a jackknife over windows. Last the same without the criteria that do "
        f"not look at activations ({' and '.join(CRITERIA[name] for name in BLIND)}). Only models that were calibrated "
        "on as many tokens, in passages as long, compare; those of which a criterion is missing are left out.",
        spread_table(sheets),
    ]
    for sheet, rows in sheets.items():
        case = rows[-1]["case"]
        dense = ", ".join(f"{text} {value:.2f}" for text, value in rows[-1]["result"]["dense"].items())
        sections += [
            f"## {sheet.model}, {sheet.tokens:,} tokens in passages of {sheet.passage}",
            f"{case['parameters'] / 1e6:,.0f} M parameters. Calibrated on {sheet.tokens:,} tokens of "
            f"`{sheet.sources}`, mutual information from {sheet.sample_size:,} of them. "
            f"Perplexity of the dense model: {dense}; {sheet.windows} windows of "
            f"{case['calibration']['length']} tokens of each text. {conditions(rows)}",
            quality_table(rows),
        ]
    write_page(
        out / "sizes.md", "The choice of the criterion, by size of the model", path.name, MEASURE, sections
    )


def ratios(rows: Sequence[Row]) -> list[float]:
    return sorted({row["case"]["ratio"] for row in rows})


def losses(row: Row) -> np.ndarray:
    """Mean negative log-likelihood `[texts, windows]`, nats."""
    return np.array([entry["nll"] for entry in row["result"]["pruned"]["texts"].values()])


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over criteria of `[criteria, texts, windows]`, by text and last for the mean over texts."""
    by_text = values.mean(2)
    return np.append(by_text, by_text.mean(1, keepdims=True), axis=1).std(0, ddof=1)


def jackknife(values: np.ndarray) -> float:
    """The standard error of the last element of `spread`, from leaving out each window of all texts in turn."""
    n = values.shape[2]
    without = [spread(np.delete(values, i, axis=2))[-1] for i in range(n)]
    return math.sqrt((n - 1) * np.var(without))


def with_error(values: np.ndarray) -> str:
    return f"{spread(values)[-1]:.3f} ({jackknife(values):.3f})"


def spread_table(sheets: dict[Sheet, list[Row]]) -> str:
    lines = []
    for repair, group in REPAIRS.items():
        for ratio in ratios([row for rows in sheets.values() for row in rows]):
            for sheet, rows in sheets.items():
                found = {
                    criterion: losses(row)
                    for row in rows
                    for criterion in CRITERIA
                    if row["case"]["ratio"] == ratio and row["case"]["method"] == f"{criterion}, {repair}"
                }
                if len(found) < len(CRITERIA):
                    continue
                values = np.stack(list(found.values()))
                seeing = [loss for name, loss in found.items() if name not in BLIND]
                *by_text, _ = spread(values)
                lines.append(
                    [
                        group,
                        percent(ratio),
                        f"{sheet.tokens:,}",
                        str(sheet.passage),
                        sheet.model,
                        f"{rows[0]['case']['parameters'] / 1e6:,.0f} M",
                        *(f"{value:.3f}" for value in by_text),
                        with_error(values),
                        with_error(np.stack(seeing)) if len(seeing) > 1 else "",
                    ]
                )
    texts = next(iter(sheets.values()))[0]["result"]["dense"]
    head = ["repair", "dropped", "tokens", "passage", "model", "parameters"]
    return table([*head, *texts, "mean", "seeing activations"], lines)


def quality_table(rows: Sequence[Row]) -> str:
    """A line for each method with the mean over the texts at each ratio."""
    cells = {(row["case"]["method"], row["case"]["ratio"]): row["result"] for row in rows}

    def cell(name: str, ratio: float) -> str:
        if (name, ratio) not in cells:
            return ""
        pruned = cells[name, ratio]["pruned"]
        errors = [entry["log_ratio_standard_error"] for entry in pruned["texts"].values()]
        error = math.sqrt(sum(e * e for e in errors)) / len(errors)
        return f"{pruned['geometric_mean']:.3f} ({error:.3f}), worst {pruned['worst']:.3f}"

    at = ratios(rows)
    change = {
        ratio: rows_at[-1]["result"]["parameters"] / rows_at[-1]["case"]["parameters"] - 1
        for ratio in at
        if (rows_at := [row for row in rows if row["case"]["ratio"] == ratio])
    }
    lines = [["parameters of the whole model", *(f"{100 * change[ratio]:+.1f} %" for ratio in at)]]
    names = dict.fromkeys(row["case"]["method"] for row in rows)
    lines += [
        [f"{METHODS[name].label}, {METHODS[name].group}", *(cell(name, r) for r in at)] for name in names
    ]
    return table(["", *map(percent, at)], lines)
