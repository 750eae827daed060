"""The page of GLUE: scores of fine-tuned encoders by criterion, and the spread over criteria by size of the model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from benchmarks.publish.page import conditions, latest, write_page
from benchmarks.quality.glue_tasks import MAX_LENGTH
from benchmarks.quality.measure import DENSE
from benchmarks.quality.methods import CRITERIA, GROUPS, METHODS, REPAIRS
from benchmarks.record import Row
from benchmarks.tables import percent, table

MEASURE = "python -m benchmarks.quality.glue --data DIR --model FOLDER"
CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean over seeds and the half-width of its interval by Student's t; NaN for one seed."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        n = len(values)
        if n < 2:
            return cls(float(np.mean(values)), math.nan)
        error = float(np.std(values, ddof=1)) / math.sqrt(n)
        return cls(float(np.mean(values)), float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * error)

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if math.isnan(self.half) else f" ± {self.half:.3f}")


class Sheet(NamedTuple):
    """The rows of one model and task."""

    model: str
    task: str
    rows: list[Row]

    @property
    def ratios(self) -> list[float]:
        return sorted({row["case"]["ratio"] for row in self.rows} - {0.0})

    def of(self, method: str, ratio: float) -> dict[int, Row]:
        """The rows of a method by their seeds."""
        found = (row for row in self.rows if (row["case"]["method"], row["case"]["ratio"]) == (method, ratio))
        return {row["case"]["seed"]: row for row in found}

    def score(self, method: str, ratio: float) -> Mean | None:
        rows = self.of(method, ratio).values()
        return Mean.of([row["result"]["score"] for row in rows]) if rows else None

    def dense_score(self, ratio: float) -> Mean:
        """Of the models that were pruned by this ratio: seeds differ by more than criteria do."""
        seeds = {row["case"]["seed"] for row in self.rows if row["case"]["ratio"] == ratio}
        dense = self.of(DENSE, 0.0)
        return Mean.of([dense[seed]["result"]["score"] for seed in sorted(seeds)])

    def spread(self, repair: str, ratio: float) -> Mean | None:
        """The standard deviation over the criteria, which is taken for each seed."""
        by_criterion = [self.of(f"{criterion}, {repair}", ratio) for criterion in CRITERIA]
        seeds = sorted(set.intersection(*(set(rows) for rows in by_criterion)))
        scores = [[rows[seed]["result"]["score"] for rows in by_criterion] for seed in seeds]
        return Mean.of(np.std(scores, axis=1, ddof=1).tolist()) if seeds else None

    @property
    def parameters(self) -> int:
        return self.rows[0]["result"]["dense_parameters"]


def publish(path: Path, out: Path) -> None:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in latest(path):
        case = row["case"]
        # Models that were trained otherwise have their own table.
        training = str(case["training"] | {"seed": None})
        groups.setdefault((case["model"], case["task"], training), []).append(row)
    sheets = [Sheet(model, task, rows) for (model, task, _), rows in groups.items()]
    sections = [
        "Encoders that were fine-tuned on tasks of GLUE, then pruned without labels and not trained again: the score "
        "on the official development set (higher is better), by criterion, repair and share of the FFN neurons that "
        "every layer loses. Means over seeds of fine-tuning and pruning, with their "
        f"{percent(CONFIDENCE)} intervals by Student's t; a score without an interval is of one seed. In parentheses "
        "the share of the examples that are classified as by the dense model.",
        "## Spread over criteria",
        "How much the choice of the criterion matters: the standard deviation of the score over the "
        f"{len(CRITERIA)} criteria, which is taken for each seed, by size of the model. The sampling error is that of "
        "one score on as many examples: about as much spread is left where all criteria are equally good.",
        spread_table(sheets),
        verdict(sheets),
    ]
    for sheet in sheets:
        sections += [f"## {sheet.model}, {sheet.task}", describe(sheet), score_table(sheet)]
    write_page(out / "glue.md", "Quality of pruned encoders on GLUE", path.name, MEASURE, sections)


def spread_table(sheets: Sequence[Sheet]) -> str:
    """A line for each task, repair and model; small models first."""
    ratios = sorted({ratio for sheet in sheets for ratio in sheet.ratios})
    lines = []
    for sheet in sorted(sheets, key=lambda s: (s.task, s.parameters)):
        for repair, group in REPAIRS.items():
            cells = [sheet.spread(repair, ratio) for ratio in ratios]
            if any(cells):
                name = f"{sheet.model} ({sheet.parameters / 1e6:.0f} M)"
                shown = ["" if cell is None else str(cell) for cell in cells]
                lines.append([sheet.task, group, name, *shown, f"{sampling_error(sheet):.3f}"])
    lines.sort(key=lambda line: line[:2])
    return table(["task", "repair", "model", *map(percent, ratios), "sampling error"], lines)


def sampling_error(sheet: Sheet) -> float:
    """The standard error of the score of the dense model: of a share, or of a correlation."""
    case, dense = sheet.rows[0]["case"], sheet.score(DENSE, 0.0)
    assert dense is not None  # noqa: S101
    variance = dense.value * (1 - dense.value) if case["measure"] == "accuracy" else (1 - dense.value**2) ** 2
    return math.sqrt(variance / case["test_examples"])


def verdict(sheets: Sequence[Sheet]) -> str:
    """Whether the spread is smaller in the larger model, where two models have the same task."""
    found = []
    for small in sheets:
        for large in sheets:
            if small.task != large.task or small.parameters >= large.parameters:
                continue
            for repair in REPAIRS:
                for ratio in set(small.ratios) & set(large.ratios):
                    pair = small.spread(repair, ratio), large.spread(repair, ratio)
                    if pair[0] is not None and pair[1] is not None:
                        found.append((pair[0], pair[1]))
    if not found:
        return "No task has been measured with models of two sizes."
    smaller = [(a, b) for a, b in found if b.value < a.value]
    apart = sum(b.value + b.half < a.value - a.half for a, b in smaller)
    opposite = sum(a.value + a.half < b.value - b.half for a, b in found)
    return (
        f"Of {len(found)} comparisons of two sizes (same task, repair and ratio), the spread is smaller in the larger "
        f"model in {len(smaller)}, in {apart} of them beyond the intervals, and larger beyond the intervals in "
        f"{opposite}."
    )


def describe(sheet: Sheet) -> str:
    """Measure, fine-tuning and calibration in words."""
    case = next(row["case"] for row in sheet.rows if row["case"]["method"] != DENSE)
    training, text = case["training"], case["calibration"]
    frozen = training["frozen_layers"]
    kept = f" and the {frozen} lowest layers" if frozen else ""
    return (
        f"{case['measure'].capitalize()} on {case['test_examples']:,} examples. Fine-tuned on {training['examples']:,} "
        f"examples in {training['epochs']} epochs (batches of {training['batch_size']}, learning rate "
        f"{training['learning_rate']:g}), all but the embeddings{kept}; sentences are cut to {MAX_LENGTH} tokens. "
        f"Calibrated on about {text['tokens']:,} tokens of the training set. {conditions(sheet.rows)}"
    )


def score_table(sheet: Sheet) -> str:
    """A line for each method, grouped by repair; the best score of each ratio is bold."""
    names = {row["case"]["method"] for row in sheet.rows}
    scores = {
        (name, ratio): score
        for name in names
        for ratio in sheet.ratios
        if (score := sheet.score(name, ratio)) is not None
    }
    best = {r: max(s.value for (_, ratio), s in scores.items() if ratio == r) for r in sheet.ratios}

    def cell(name: str, ratio: float) -> str:
        score = scores.get((name, ratio))
        if score is None:
            return ""
        same = np.mean([row["result"]["agreement"] for row in sheet.of(name, ratio).values()])
        shown = f"**{score}**" if score.value == best[ratio] else str(score)
        return f"{shown} ({same:.0%})".replace("%", " %")

    lines = [
        ["parameters of the whole model", *(_change(sheet, ratio) for ratio in sheet.ratios)],
        [DENSE, *(str(sheet.dense_score(ratio)) for ratio in sheet.ratios)],
    ]
    for group in GROUPS:
        of_group = [m for m in METHODS.values() if m.group == group and m.name in names]
        if of_group:
            lines.append([f"*{group}*", *[""] * len(sheet.ratios)])
        lines += [[m.label, *(cell(m.name, ratio) for ratio in sheet.ratios)] for m in of_group]
    return table(["", *map(percent, sheet.ratios)], lines)


def _change(sheet: Sheet, ratio: float) -> str:
    """The parameters left at a ratio, and their change."""
    left = next(row["result"]["parameters"] for row in sheet.rows if row["case"]["ratio"] == ratio)
    return f"{left / 1e6:.1f} M ({100 * (left / sheet.parameters - 1):+.0f} %)"
