"""A table and a plot of stored rows: bias and root mean square error against the truth, with intervals.

    python -m benchmarks.accuracy.report

Writes `accuracy.md`, `accuracy.png` and `accuracy.svg`, and the README's table between its markers. Of several rows
of an estimator at one M the last one counts. Intervals are 95 % of bootstrap samples of the repeats.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.estimators import ESTIMATORS
from benchmarks.readme import write_block
from benchmarks.record import RESULTS

RESAMPLES = 1000
HALVES = ("tuning", "reported")
REFERENCE = "KSG"
SHOWN = ("adaptive", "grid", "kde", "KSG", "ennemi, normal scores", "B-spline", "Gaussian")
COLOURS = ("#c2185b", "#f48fb1", "#ba68c8", "#1f77b4", "#17a2b8", "#8d99a6", "#c7ccd1")


class Errors(NamedTuple):
    """Estimates less truth of one estimator at one M: `[cases, repeats]`, nats."""

    names: list[str]
    halves: list[str]
    truth: np.ndarray
    values: np.ndarray

    def half(self, half: str) -> np.ndarray:
        return self.values[[h == half for h in self.halves]]


def load(path: Path) -> dict[tuple[str, int], Errors]:
    """By estimator and M, in the order of `ESTIMATORS`."""
    found: dict[tuple[str, int], Errors] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        cases = row["result"]["cases"]
        truth = np.array([c["truth"] for c in cases.values()])
        values = np.array([c["estimates"] for c in cases.values()]) - truth[:, None]
        halves = [c["half"] for c in cases.values()]
        found[row["case"]["estimator"], row["case"]["M"]] = Errors(list(cases), halves, truth, values)
    order = list(ESTIMATORS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def mean_rmse(values: np.ndarray) -> float:
    """Root mean square over the repeats, mean over the cases."""
    return float(np.sqrt((values**2).mean(1)).mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Of `mean_rmse`, by drawing repeats of every case anew."""
    rng = np.random.default_rng(0)
    n_cases, n_repeats = values.shape
    drawn = rng.integers(n_repeats, size=(RESAMPLES, n_cases, n_repeats))
    again = np.take_along_axis(values[None], drawn, axis=2)
    low, high = np.quantile(np.sqrt((again**2).mean(2)).mean(1), [0.025, 0.975])
    return float(low), float(high)


def table(rows: dict[tuple[str, int], Errors]) -> str:
    samples = sorted({m for _, m in rows})
    head = [f"M = {m}, {half}" for m in samples for half in HALVES]
    lines = [
        "Mean RMSE in nats over the cases of each half, in parentheses the 95 % interval of the reported half.",
        "",
        "| estimator | " + " | ".join(head) + " |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name in dict.fromkeys(name for name, _ in rows):
        cells = []
        for m in samples:
            errors = rows.get((name, m))
            for half in HALVES:
                if errors is None:
                    cells.append("")
                    continue
                values = errors.half(half)
                text = f"{mean_rmse(values):.4f}"
                if half == "reported":
                    text += " ({:.4f} to {:.4f})".format(*interval(values))
                cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


IN_README = {
    "adaptive": "adaptive",
    "KSG": "KSG (scikit-learn)",
    "ennemi, normal scores": "KSG on normal scores (ennemi)",
    "kde": "kde",
    "grid": "grid",
    "B-spline": "B-spline (widestats)",
}


def readme_table(rows: dict[tuple[str, int], Errors]) -> str:
    """Mean RMSE over the reported cases, one line an M."""
    shown = [name for name in IN_README if any(name == other for other, _ in rows)]
    lines = [f"| M | {' | '.join(IN_README[name] for name in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for m in sorted({m for _, m in rows}):
        found = [rows.get((name, m)) for name in shown]
        cells = ["-" if e is None else f"{mean_rmse(e.half('reported')):.3f}" for e in found]
        lines.append(f"| {m} | {' | '.join(cells)} |")
    return "\n".join(lines)


def case_table(rows: dict[tuple[str, int], Errors], n_samples: int, names: tuple[str, ...]) -> str:
    """Bias and RMSE of every case at one M."""
    shown = [name for name in names if (name, n_samples) in rows]
    first = rows[shown[0], n_samples]
    lines = [
        f"Bias / RMSE in nats at M = {n_samples}.",
        "",
        "| case | half | truth | " + " | ".join(shown) + " |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for i, case in enumerate(first.names):
        cells = []
        for name in shown:
            values = rows[name, n_samples].values[i]
            cells.append(f"{values.mean():+.4f} / {np.sqrt((values**2).mean()):.4f}")
        label = case.replace("|", "\\|")
        lines.append(f"| {label} | {first.halves[i]} | {first.truth[i]:.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[tuple[str, int], Errors], n_samples: int, out: Path) -> None:
    """Mean RMSE against M on the reported half, and beside it the bias of each of its cases at one M."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 6.4), width_ratios=(1, 1.15), layout="constrained"
    )
    for name, colour in zip(SHOWN, COLOURS, strict=True):
        samples = [m for other, m in rows if other == name]
        if not samples:
            continue
        values = [rows[name, m].half("reported") for m in samples]
        means = np.array([mean_rmse(v) for v in values])
        bounds = np.array([interval(v) for v in values]).T
        strong = name == "adaptive"
        left.errorbar(
            samples,
            means,
            yerr=np.abs(bounds - means),
            label=name,
            color=colour,
            marker="o",
            capsize=3,
            lw=2.4 if strong else 1.4,
            zorder=3 if strong else 2,
        )
    left.set(xscale="log", yscale="log", xlabel="samples M", ylabel="mean RMSE, nats")
    left.set_title("Error over the reported cases", loc="left")
    ticks = sorted({m for _, m in rows})
    left.set_xticks(ticks, [f"{m:,}" for m in ticks])
    left.minorticks_off()
    left.legend(frameon=False, fontsize=9, loc="lower left")

    offsets = {"adaptive": 0.0, REFERENCE: 0.27, "ennemi, normal scores": -0.27}
    for name, offset in offsets.items():
        if (name, n_samples) not in rows:
            continue
        errors = rows[name, n_samples]
        order = np.argsort(errors.truth[[h == "reported" for h in errors.halves]], kind="stable")
        values = errors.half("reported")[order]
        places = np.arange(len(values)) + offset
        spread = 1.96 * values.std(1) / np.sqrt(values.shape[1])
        colour = COLOURS[SHOWN.index(name)]
        right.errorbar(values.mean(1), places, xerr=spread, fmt="o", ms=4, lw=1.2, color=colour, label=name)
        if name == "adaptive":
            cases = [n for n, h in zip(errors.names, errors.halves, strict=True) if h == "reported"]
            truth = errors.truth[[h == "reported" for h in errors.halves]]
            right.set_yticks(places, [f"{cases[i]}  ({truth[i]:.2f})" for i in order], fontsize=8)
    right.axvline(0, color="black", lw=0.8)
    right.set_xscale("symlog", linthresh=0.1)
    right.set(xlabel="bias, nats, with 95 % intervals (logarithmic beyond 0.1)")
    right.set_title(f"Bias by case (truth in nats), M = {n_samples:,}", loc="left")
    right.grid(axis="y", lw=0.3)
    right.legend(frameon=False, fontsize=9, loc="lower left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    for suffix in ("png", "svg"):
        figure.savefig(out / f"accuracy.{suffix}", dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=RESULTS / "accuracy.jsonl")
    parser.add_argument("--samples", type=int, default=2000, help="M of what is shown case by case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=RESULTS.parents[1] / "README.md")
    args = parser.parse_args()
    rows = load(args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    names = ("adaptive", "adaptive, raw", REFERENCE, "ennemi, normal scores")
    text = table(rows) + "\n" + case_table(rows, args.samples, names)
    (args.out / "accuracy.md").write_text(text, encoding="utf-8")
    plot(rows, args.samples, args.out)
    write_block(args.readme, "accuracy", readme_table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
