"""The page of reliability: agreement of two halves of the tokens, by estimator, tokens and time."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.publish.page import conditions, latest, write_page
from benchmarks.publish.plots import COLORS, save, size_ticks
from benchmarks.record import Row
from benchmarks.reliability import TARGET
from benchmarks.tables import duration, table

PREDICTED_FROM = (512, 2048)  # tokens of a matrix from which `samples_for` predicts


class Curve:
    """One estimator at the sizes that were measured on all layers: arrays `[layers, sizes]`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        results = {(r["case"]["layer"], r["case"]["M"]): r["result"] for r in rows}
        self.layers = sorted({layer for layer, _ in results})
        measured = [m for m in sorted({m for _, m in results}) if all((i, m) in results for i in self.layers)]
        self.tokens = [m // 2 for m in measured]  # of one matrix

        def values(key: str) -> np.ndarray:
            return np.array([[results[layer, m][key] for m in measured] for layer in self.layers])

        self.agreement = values("halves")  # Spearman correlation of two matrices
        self.seconds = np.median(values("seconds_of_a_half"), axis=0)  # of one matrix
        self.predicted = values("tokens_for_target")  # by `samples_for`

    def reached(self, i: int) -> str:
        """Tokens at which the layer of index i reaches `TARGET`, interpolated; or a bound outside the range."""
        line = np.maximum.accumulate(self.agreement[i])
        if line[0] >= TARGET:
            return "< " + two_digits(self.tokens[0])
        if line[-1] <= TARGET:
            return "> " + two_digits(self.tokens[-1])
        return two_digits(math.exp(np.interp(TARGET, line, np.log(self.tokens))))


def publish(path: Path, out: Path) -> None:
    rows = latest(path)
    found = curves(rows)
    case = rows[-1]["case"]
    layers = ", ".join(map(str, next(iter(found.values())).layers))
    sections = [
        f"How well do two disjoint sets of tokens agree on the ranking of pairs? All pairs of {case['N']} neurons of "
        f"{case['model']}, layers {layers}, on tokens of {case['text']}. Agreement is the Spearman correlation over "
        "pairs between the matrices of the two sets. `linear` is the squared correlation of normal scores. Matrices "
        f"that would take more than about {case['cap']:.0f} s were too slow to measure.",
        conditions(rows),
        "## Agreement by number of tokens",
        "Mean over the layers (range), and the time of one matrix.",
        agreement_table(found),
        "![Agreement against tokens and time](reliability.png)",
        "## Tokens needed",
        f"Tokens of a matrix at which two matrices agree by {TARGET}: interpolated between the measured sizes, and as "
        "predicted by `samples_for` from matrices of fewer tokens.",
        target_table(found),
    ]
    measure = f"python -m benchmarks.reliability {case['model']} {case['text']}"
    write_page(out / "reliability.md", "Reliability", path.name, measure, sections)
    save(draw, out / "reliability", found)


def curves(rows: Sequence[Row]) -> dict[str, Curve]:
    """By estimator, in the order of first storage."""
    names = dict.fromkeys(r["case"]["estimator"] for r in rows)
    return {name: Curve([r for r in rows if r["case"]["estimator"] == name]) for name in names}


def agreement_table(found: dict[str, Curve]) -> str:
    sizes = sorted({n for curve in found.values() for n in curve.tokens})
    lines = []
    for name, curve in found.items():
        cells = dict.fromkeys(sizes, "too slow")
        for n, values, seconds in zip(curve.tokens, curve.agreement.T, curve.seconds, strict=True):
            extent = f"{values.min():.2f} to {values.max():.2f}"
            cells[n] = f"**{values.mean():.3f}** ({extent}), {duration(seconds)}"
        lines.append([name, *cells.values()])
    return table(["tokens of each matrix", *(f"{n:,}" for n in sizes)], lines)


def target_table(found: dict[str, Curve]) -> str:
    lines = []
    for name, curve in found.items():
        starts = [curve.tokens.index(n) if n in curve.tokens else None for n in PREDICTED_FROM]
        for i, layer in enumerate(curve.layers):
            predicted = ["" if at is None else two_digits(curve.predicted[i, at]) for at in starts]
            lines.append([name, str(layer), curve.reached(i), *predicted])
    head = [f"predicted from {n:,}" for n in PREDICTED_FROM]
    return table(["estimator", "layer", "reached at", *head], lines)


def two_digits(value: float) -> str:
    """Rounded to two digits, the rest being noise."""
    if not math.isfinite(value):
        return "-"
    unit = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return f"{round(value / unit) * unit:,}"


def draw(found: dict[str, Curve]) -> Figure:
    """Agreement against tokens, with a thin line for each layer, and against the time of one matrix."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True)
    for name, curve in found.items():
        mean = curve.agreement.mean(0)
        left.plot(curve.tokens, mean, "o-", color=COLORS[name], label=name)
        left.plot(curve.tokens, curve.agreement.T, color=COLORS[name], lw=0.7, alpha=0.3)
        right.plot(curve.seconds, mean, "o-", color=COLORS[name])
    size_ticks(left, sorted({n for curve in found.values() for n in curve.tokens}))
    left.set(xlabel="tokens of each matrix", ylabel="Spearman correlation of two matrices")
    left.set_title("Agreement of rankings from different tokens")
    left.legend(loc="lower right")
    right.set(xscale="log", xlabel="time of one matrix", title="Agreement against time")
    right.xaxis.set_major_formatter(lambda value, _: duration(value))
    for axes in (left, right):
        axes.axhline(TARGET, color="black", lw=0.6, ls=":")
    return figure
