"""Stored rows as scores that can be compared pair by pair."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.quality.measure import DENSE
from benchmarks.record import Row, load

Key = tuple[str, float]  # method and ratio; the dense model is `(DENSE, 0.0)`


class Score(NamedTuple):
    """The quality of one pruned model by one protocol.

    `samples [n]` are the mean negative log-likelihood of each window in nats, or the correlation with each group of
    pairs left out.
    """

    measure: str  # "perplexity" or "spearman"
    value: float  # over all test data
    samples: np.ndarray

    def against(self, other: "Score") -> tuple[float, float]:
        """Difference in log-perplexity or correlation, and its standard error.

        The error is that of the mean over paired windows, or the delete-a-group jackknife for correlations.
        """
        difference = self.samples - other.samples
        n = len(difference)
        if self.measure == "perplexity":
            error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
            return float(difference.mean()), error
        deviation = difference - difference.mean()
        return self.value - other.value, math.sqrt((n - 1) / n * float((deviation**2).sum()))

    @property
    def loss(self) -> float:
        """Smaller is better."""
        return self.value if self.measure == "perplexity" else -self.value


class Sheet(NamedTuple):
    """All scores of one model in one dtype by one protocol, in the order of first storage, and the last row behind
    each."""

    model: str
    dtype: str
    protocol: str
    scores: dict[Key, Score]
    rows: dict[Key, Row]

    @property
    def last(self) -> Row:
        return list(self.rows.values())[-1]

    @property
    def measure(self) -> str:
        return self.dense.measure

    @property
    def dense(self) -> Score:
        return self.scores[DENSE, 0.0]

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio in self.scores} - {0.0})

    def of(self, method: str) -> list[Row]:
        """The rows of a method, one for each ratio."""
        return [row for (name, _), row in self.rows.items() if name == method]


def sheets(path: Path) -> list[Sheet]:
    """Scores by model, dtype and protocol, in the order of first storage.

    The last row of a method, ratio and seed counts; seeds are averaged.

    Raises:
        ValueError: no rows, or a model without its dense row.
    """
    rows = load(path)
    if not rows:
        raise ValueError(f"{path}: expected rows, found none; run python -m benchmarks.quality")
    latest: dict[tuple[str, str, str], dict[Key, dict[int, Row]]] = {}
    for row in rows:
        case = row["case"]
        for protocol in row["result"]["quality"]:
            sheet = latest.setdefault((case["model"], case["dtype"], protocol), {})
            sheet.setdefault((case["method"], case["ratio"]), {})[case["seed"]] = row
    found = []
    for (model, dtype, protocol), sheet in latest.items():
        if (DENSE, 0.0) not in sheet:
            raise ValueError(f"{path}: expected a dense row of {model} in {dtype} by {protocol}, found none")
        by_key = {key: list(seeds.values()) for key, seeds in sheet.items()}
        scores = {key: _score(seeds, protocol) for key, seeds in by_key.items()}
        found.append(Sheet(model, dtype, protocol, scores, {key: seeds[-1] for key, seeds in by_key.items()}))
    return found


def _score(rows: list[Row], protocol: str) -> Score:
    """The average over the rows of several seeds."""
    measure = rows[0]["case"]["measure"]
    quality = [row["result"]["quality"][protocol] for row in rows]
    samples = np.mean([q["nll" if measure == "perplexity" else "without_group"] for q in quality], axis=0)
    if measure == "perplexity":
        return Score(measure, float(np.exp(np.minimum(samples.mean(), 700))), samples)
    return Score(measure, float(np.mean([q["spearman"] for q in quality])), samples)
