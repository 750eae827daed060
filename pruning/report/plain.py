"""The report in a terminal: the verdict, tables, and sparklines of the layers."""

import math
from collections.abc import Sequence

from pruning.report import words
from pruning.report.result import Result
from pruning.report.table import table

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"
"""For terminals without the blocks."""
LINES = {
    "kept": "kept_share",
    "sensitivity": "sensitivity",
    "median MI": "median_mi",
    "null": "null_mi",
    "predicted": "predicted",
    "error": "repair_error",
}


def plain_text(results: Sequence[Result], *, blocks: str = BLOCKS) -> str:
    """The report of the results, and before it a table of them if there are several.

    Args:
        blocks: eight characters, the lowest first.
    """
    parts = [_of_one(result, blocks) for result in results]
    if len(results) > 1:
        parts.insert(0, _side_by_side(results))
    return "\n\n\n".join(parts)


def sparkline(values: Sequence[float], blocks: str = BLOCKS) -> str:
    """One character for each value, relative to the least and the largest; a space for NaN."""
    known = [value for value in values if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if math.isnan(v) else blocks[round((v - low) * scale)] for v in values)


def _side_by_side(results: Sequence[Result]) -> str:
    rows = [
        (
            result.label,
            words.percent(result.dropped_share),
            *(str(result.manifest["settings"][name]) for name in ("criterion", "repair", "budget")),
            "; ".join(f"{q.text}: {words.quality(q)}" for q in result.quality) or words.NOT_MEASURED,
            words.standing(result),
        )
        for result in results
    ]
    return table(rows, ("result", "dropped", "criterion", "repair", "budget", "quality", "verdict"))


def _of_one(result: Result, blocks: str) -> str:
    columns = words.columns(result)
    rows = [(layer.name, *row.values()) for layer, row in zip(result.layers, columns, strict=True)]
    neurons = [
        (
            layer.name,
            str(n.neuron),
            str(n.partner),
            words.short(n.mi),
            words.chance(n.p_value),
            words.percent(n.r2),
        )
        for layer in result.layers
        for n in layer.redundant[:1]
    ]
    parts = [
        f"{result.label}\n{words.verdict(result)}",
        "\n".join(f"Warning: {text}" for text in words.warnings(result)),
        table(words.costs(result), ("", "dense", "pruned", "change")),
        _sparklines(result, blocks),
        table(rows, ("layer", *columns[0])),
    ]
    if neurons:
        header = ("most redundant of", "neuron", "partner kept", "MI (nats)", "p", "R^2")
        parts.append(table(neurons, header))
    parts.append(table(words.stages(result), ("stage", "seconds", "peak of memory (MB), where it rose")))
    parts.append("\n".join(f"{name}: {value}" for name, value in words.conditions(result)))
    return "\n\n".join(part for part in parts if part)


def _sparklines(result: Result, blocks: str) -> str:
    """Of each column of the table of layers, from the first layer to the last, with the range."""
    width = max(map(len, LINES))
    lines = []
    for name, field in LINES.items():
        values = [getattr(layer, field) for layer in result.layers]
        known = [value for value in values if not math.isnan(value)]
        if known:
            span = f"{min(known):.3g} to {max(known):.3g}"
            lines.append(f"{name:<{width}}  {sparkline(values, blocks)}  {span}")
    return "\n".join(lines)
