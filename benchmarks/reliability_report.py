"""Table and plot of the stored rows of reliability: `python -m benchmarks.reliability_report`.

Writes `reliability.md`, `.png` and `.svg` beside the rows. Of several rows of one measurement the last counts.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS

Row = dict[str, Any]
TARGET = 0.9
COLOURS = {
    "grid": "#1f5fa8",
    "adaptive": "#c2185b",
    "kde": "#2a8f82",
    "renyi2": "#7a5aa6",
    "linear": "#8d99a6",
}


class Curve:
    """One estimator on every layer: `[layers, sizes]` of what was measured at the same sizes on all of them."""

    def __init__(self, rows: list[Row]) -> None:
        self.layers = sorted({r["case"]["layer"] for r in rows})
        by_place = {(r["case"]["layer"], r["case"]["M"]): r["result"] for r in rows}
        sizes = sorted({m for _, m in by_place})
        self.tokens = [m for m in sizes if all((layer, m) in by_place for layer in self.layers)]
        """M, of both halves."""

        def values(key: str) -> np.ndarray:
            return np.array([[by_place[layer, m][key] for m in self.tokens] for layer in self.layers])

        self.agreement = values("halves")
        self.seconds = np.median(values("seconds_of_a_half"), axis=0)
        self.predicted = values("tokens_for_target")

    def reached(self) -> list[float]:
        """Tokens of a matrix at which each layer's halves agree by `TARGET`, between the sizes measured; NaN beyond."""
        halves = np.log([m / 2 for m in self.tokens])
        return [
            math.exp(np.interp(TARGET, line, halves)) if line[0] < TARGET < line[-1] else math.nan
            for line in np.maximum.accumulate(self.agreement, axis=1)
        ]


def load(path: Path) -> dict[str, Curve]:
    """By estimator, in the order in which they were first stored."""
    rows: dict[str, dict[str, Row]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = json.dumps([row["case"][name] for name in ("layer", "M")])
        rows.setdefault(row["case"]["estimator"], {})[key] = row
    return {name: Curve(list(found.values())) for name, found in rows.items()}


def agreement_table(curves: dict[str, Curve]) -> str:
    """Mean over the layers, their range, and the time of one matrix."""
    sizes = sorted({m for curve in curves.values() for m in curve.tokens})
    lines = [
        "| tokens of each matrix | " + " | ".join(f"{m // 2:,}" for m in sizes) + " |",
        "|---" + "|---:" * len(sizes) + "|",
    ]
    for name, curve in curves.items():
        cells = ["too slow"] * len(sizes)
        for i, m in enumerate(curve.tokens):
            found = curve.agreement[:, i]
            cells[sizes.index(m)] = (
                f"**{found.mean():.3f}** ({found.min():.2f} to {found.max():.2f}), {duration(curve.seconds[i])}"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def target_table(curves: dict[str, Curve]) -> str:
    """Where `TARGET` was reached, against what `samples_for` had said from fewer tokens."""
    lines = [
        "| estimator | layer | reached at | said from 512 | said from 2,048 |",
        "|---|---|---:|---:|---:|",
    ]
    for name, curve in curves.items():
        starts = [curve.tokens.index(m) if m in curve.tokens else None for m in (1024, 4096)]
        for i, (layer, tokens) in enumerate(zip(curve.layers, curve.reached(), strict=True)):
            said = [number(curve.predicted[i, at]) if at is not None else "" for at in starts]
            outside = "< " if curve.agreement[i, 0] >= TARGET else "> "
            end = curve.tokens[0 if curve.agreement[i, 0] >= TARGET else -1] // 2
            found = number(tokens) if tokens == tokens else outside + number(end)
            lines.append(f"| {name} | {layer} | {found} | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Two digits, as the rest is noise."""
    if not math.isfinite(value):
        return "-"
    size = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return f"{round(value / size) * size:,}"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def text(curves: dict[str, Curve], row: Row) -> str:
    case, machine = row["case"], row["machine"]
    layers = ", ".join(map(str, next(iter(curves.values())).layers))
    return "\n".join(
        [
            "# Reliability\n",
            f"All pairs of {case['N']} neurons of {case['model']}, layers {layers}, on tokens of {case['text']}. "
            "Spearman's correlation over pairs between the matrices of two disjoint sets of tokens: mean over the "
            "layers (range), and the time of one matrix. `linear` is the squared correlation of normal scores. "
            f"Too slow is a matrix of more than about {case['cap']:.0f} s. {machine['threads']} thread"
            f"{'s' * (machine['threads'] > 1)} of {machine['cpu']}, torch {row['versions']['torch']}, "
            f"seed {case['seed']}, commit {row['commit']}, {row['date']}.\n",
            agreement_table(curves),
            "![Reliability against tokens and time](reliability.png)\n",
            f"Tokens of a matrix at which two of them agree by {TARGET}: interpolated between the sizes measured, "
            "and as `samples_for` said from matrices of fewer.\n",
            target_table(curves),
        ]
    )


def plot(curves: dict[str, Curve], out: Path) -> None:
    """Agreement against tokens, each layer as a thin line, and against the time of one matrix."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mikernels"  # so that equal rows give equal files
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    for name, curve in curves.items():
        halves = np.array(curve.tokens) / 2
        mean = curve.agreement.mean(0)
        style = {"color": COLOURS[name], "marker": "o", "ms": 4, "lw": 1.8, "label": name}
        left.plot(halves, mean, **style)
        left.plot(halves, curve.agreement.T, color=COLOURS[name], lw=0.7, alpha=0.3)
        right.plot(curve.seconds, mean, **style)
    left.set(xscale="log", xlabel="tokens of each matrix", ylabel="Spearman's correlation of two matrices")
    ticks = sorted({m // 2 for curve in curves.values() for m in curve.tokens})
    left.set_xticks(ticks, [f"{m:,}" for m in ticks])
    left.minorticks_off()
    left.set_title("Same order of pairs from other tokens", loc="left", fontsize=10)
    right.set(xscale="log", xlabel="time of one matrix")
    right.xaxis.set_major_formatter(lambda value, _: duration(value))
    right.set_title("and what it costs", loc="left", fontsize=10)
    left.legend(frameon=False, loc="lower right")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eceef1")
        axis.axhline(TARGET, color="black", lw=0.6, ls=":")
    for suffix in ("png", "svg"):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(out.with_suffix(f".{suffix}"), dpi=150, metadata=metadata)
    plt.close(figure)


def write(path: Path) -> None:
    """Table and plot beside the rows in `path`."""
    curves = load(path)
    last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    path.with_suffix(".md").write_text(text(curves, last), encoding="utf-8")
    plot(curves, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=RESULTS / "reliability.jsonl")
    write(parser.parse_args().rows)


if __name__ == "__main__":
    main()
