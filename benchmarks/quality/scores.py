"""Stored rows as scores that can be compared pair by pair."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.quality.measure import DENSE, load


class Score(NamedTuple):
    """Of one pruned model by one protocol.

    Attributes:
        measure: `"perplexity"` or `"spearman"`.
        value: of all test data.
        parts: `[n]`, each window's mean negative log-likelihood in nats, or the correlation with each group of pairs
            left out.
    """

    measure: str
    value: float
    parts: np.ndarray

    def against(self, other: "Score") -> tuple[float, float]:
        """Difference in log-perplexity or in correlation and its standard error: over paired windows, or by the
        delete-a-group jackknife."""
        difference = self.parts - other.parts
        n = len(difference)
        if self.measure == "perplexity":
            return float(difference.mean()), float(
                difference.std(ddof=1) / math.sqrt(n)
            ) if n > 1 else math.nan
        spread = difference - difference.mean()
        return self.value - other.value, math.sqrt((n - 1) / n * float((spread**2).sum()))

    @property
    def better_first(self) -> float:
        return self.value if self.measure == "perplexity" else -self.value


class Sheet(NamedTuple):
    """All scores of one model by one protocol.

    Attributes:
        scores: by method and ratio; the dense model is `DENSE` at 0.
        cases, results: of the last row behind each.
        last: row, for the conditions.
        commits: of the rows, as first stored.
    """

    model: str
    protocol: str
    measure: str
    scores: dict[tuple[str, float], Score]
    cases: dict[tuple[str, float], dict]
    results: dict[tuple[str, float], dict]
    last: dict
    commits: list[str]

    @property
    def dense(self) -> Score:
        return self.scores[DENSE, 0.0]

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio in self.scores} - {0.0})

    def seconds(self, method: str) -> float:
        """Of pruning, the middle one of all ratios."""
        return float(
            np.median([sum(r["seconds"].values()) for (name, _), r in self.results.items() if name == method])
        )


def sheets(path: Path) -> list[Sheet]:
    """By model and protocol, as first stored. The last row of a method, ratio and seed counts; seeds are averaged.

    Raises:
        ValueError: no rows, or a model without its dense row.
    """
    rows = load(path)
    if not rows:
        raise ValueError(f"{path}: expected rows, found none; run python -m benchmarks.quality")
    latest: dict[tuple[str, str], dict[tuple[str, float], dict[int, dict]]] = {}
    for row in rows:
        case = row["case"]
        for protocol in row["result"]["quality"]:
            sheet = latest.setdefault((case["model"], protocol), {})
            sheet.setdefault((case["method"], case["ratio"]), {})[case["seed"]] = row
    found = []
    for (model, protocol), sheet in latest.items():
        if (DENSE, 0.0) not in sheet:
            raise ValueError(f"{path}: expected a dense row of {model} by {protocol}, found none")
        last = {key: list(seeds.values())[-1] for key, seeds in sheet.items()}
        final = list(last.values())[-1]
        found.append(
            Sheet(
                model,
                protocol,
                final["case"]["measure"],
                {key: _score(list(seeds.values()), protocol) for key, seeds in sheet.items()},
                {key: row["case"] for key, row in last.items()},
                {key: row["result"] for key, row in last.items()},
                final,
                list(dict.fromkeys(row["commit"] for row in last.values())),
            )
        )
    return found


def _score(rows: list[dict], protocol: str) -> Score:
    measure = rows[0]["case"]["measure"]
    found = [row["result"]["quality"][protocol] for row in rows]
    parts = np.mean([q["nll" if measure == "perplexity" else "without_group"] for q in found], axis=0)
    if measure == "perplexity":
        return Score(measure, float(np.exp(np.minimum(parts.mean(), 700))), parts)
    return Score(measure, float(np.mean([q["spearman"] for q in found])), parts)
