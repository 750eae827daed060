"""What a sweep found, as `pruning.sweep` returns it or `mi-prune --sweep --json` prints it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pruning.report.comparison import MAX_GROWTH
from pruning.report.result import number

Row = Mapping[str, Any]
"""The attributes of a `pruning.Swept` by name."""
_KEYS = {
    "ratio",
    "neurons",
    "widths",
    "parameters",
    "bytes",
    "perplexity",
    "change_error",
    "hidden_state_cosine",
}


def read_rows(rows: Sequence[Any]) -> list[Row]:
    """The rows by name, the model as it is first.

    Raises:
        ValueError: something else than the rows of a sweep.
    """
    found = [asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in rows]
    if not all(isinstance(row, Mapping) and row.keys() >= _KEYS for row in found):
        raise ValueError("sweep: expected the rows of pruning.sweep, got something else")
    return found


def load_rows(path: str | Path) -> list[Row]:
    """What `mi-prune --sweep --json` printed.

    Raises:
        OSError: no such file.
        ValueError: another file.
    """
    try:
        return read_rows(json.loads(Path(path).read_text(encoding="utf-8"))["sweep"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected what mi-prune --sweep --json prints, got another file") from error


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A table for people, its header first."""
    texts = [(name, text) for name in ("perplexity", "hidden_state_cosine") for text in rows[0][name]]
    header = ("ratio", "neurons", "widths", "parameters (M)", "weights (MB)")
    found = [(*header, *(f"{name.replace('_', ' ')}, {text}" for name, text in texts), "seconds")]
    for row in rows:
        line = [f"{row['ratio']:g}", f"{row['neurons']:,}", _range(row["widths"])]
        line += [f"{row['parameters'] / 1e6:,.1f}", f"{row['bytes'] / 1e6:,.1f}"]
        for name, text in texts:
            value = number(row[name][text])
            if name == "perplexity" and row is not rows[0]:
                change, error = growth(rows, row, text)
                line.append(f"{value:.2f} ({change - 1:+.1%} +- {error:.1%})")
            else:
                line.append(f"{value:.2f}" if name == "perplexity" else f"{value:.4f}")
        found.append((*line, f"{number(row.get('seconds')):.0f}"))
    return found


def growth(rows: Sequence[Row], row: Row, text: str) -> tuple[float, float]:
    """The perplexity on a text relative to that of the model as it is, and the standard error of its logarithm."""
    before, after = number(rows[0]["perplexity"].get(text)), number(row["perplexity"].get(text))
    return after / before, number(row["change_error"].get(text))


def dropped_share(rows: Sequence[Row], row: Row) -> float:
    """Of all neurons."""
    return float(1 - row["neurons"] / rows[0]["neurons"])


def furthest(rows: Sequence[Row]) -> str:
    """How far one may go, in a sentence; empty if that was not measured."""
    tried = rows[1:]
    if not tried or not rows[0]["perplexity"]:
        return ""
    held = []
    for row in tried:
        if not all(growth(rows, row, text)[0] <= MAX_GROWTH for text in rows[0]["perplexity"]):
            break
        held.append(row["ratio"])
    limit = f"the perplexity grows by at most {MAX_GROWTH - 1:.0%} on every text"
    if not held:
        return f"At none of the ratios that were tried {limit}."
    if len(held) == len(tried):
        return f"Up to a ratio of {held[-1]:g}, the largest that was tried, {limit}."
    return f"Up to a ratio of {held[-1]:g} {limit}; at {tried[len(held)]['ratio']:g} by more."


def _range(widths: Sequence[int]) -> str:
    least, most = min(widths), max(widths)
    return f"{least}" if least == most else f"{least} to {most}"
