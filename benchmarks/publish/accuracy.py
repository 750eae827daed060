"""The page of accuracy: bias and root mean square error against known mutual information."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.estimators import ESTIMATORS
from benchmarks.publish.page import conditions, latest, write_page
from benchmarks.publish.plots import COLORS, GRAY, save, size_ticks
from benchmarks.record import Row
from benchmarks.tables import table

RESAMPLES = 1000
CASE_SAMPLES = 2000  # M at which single cases are shown
LEAST_NATS = 0.01  # of a case whose spread is compared with a rule
HALVES = ("tuning", "reported")
GROUPS = ("continuous", "tied", "discrete", "rapid")
"""Of cases; all families of continuous variables but the rapid ones are one group."""
RIVALS = {"KSG": "KSG (scikit-learn)", "ennemi, normal scores": "KSG on normal scores (ennemi)"}
SUMMARY = {
    "adaptive": "adaptive",
    "KSG": "KSG (scikit-learn)",
    "ennemi, normal scores": "KSG on normal scores (ennemi)",
    "kde": "kde",
    "grid": "grid",
    "B-spline": "B-spline (widestats)",
}
CASE_COLUMNS = ("adaptive", "KSG", "ennemi, normal scores", "grid", "grid, raw", "grid, 32 nodes, raw")
LINES = {
    "adaptive": COLORS["adaptive"],
    "grid": COLORS["grid"],
    "kde": COLORS["kde"],
    "KSG": "#e07b00",
    "ennemi, normal scores": "#17a2b8",
    "B-spline": COLORS["b-spline"],
    "Gaussian": GRAY,
}
"""Colors of the estimators in the plot of errors; the plot of biases shows those in `OFFSETS`."""

OFFSETS = {"adaptive": 0.0, "KSG": 0.27, "ennemi, normal scores": -0.27}


class Errors(NamedTuple):
    """Estimates minus truth of one estimator at one M, `[cases, repeats]` nats, and what is known of each case."""

    names: np.ndarray
    halves: np.ndarray
    groups: np.ndarray
    truth: np.ndarray
    values: np.ndarray

    def half(self, half: str) -> "Errors":
        return Errors(*(array[self.halves == half] for array in self))

    def reported(self, group: str) -> "Errors":
        return Errors(*(array[(self.halves == "reported") & (self.groups == group)] for array in self))


Table = dict[tuple[str, int], Errors]  # by estimator and M


def publish(path: Path, out: Path) -> None:
    rows = latest(path)
    errors = by_estimator(rows)
    n_cases = [len(next(iter(errors.values())).half(half).names) for half in HALVES]
    sections = [
        f"Estimates of mutual information on {sum(n_cases)} pairs of variables whose mutual information is known: "
        f"{n_cases[0]} *tuning* cases that were used while `adaptive` was developed, and {n_cases[1]} *reported* cases "
        "that were not: continuous ones of the same families; *tied* ones, with values that many samples share, such "
        "as zeros of a ReLU; *discrete* ones, where one or both variables have a few values; and *rapid* ones, where "
        "one variable varies many times over the range of the other. All estimators see the same draws, "
        f"{rows[-1]['case']['repeats']} per case. The error of an estimator is the root mean square over the draws, "
        "averaged over the cases, in nats. Estimators of mikernels are calibrated unless they are named *raw*. KSG is "
        "made for continuous variables; its packages have other functions for discrete ones.",
        conditions(rows),
        "## Summary",
        "Error over the reported cases:",
        summary_table(errors),
        f"Ratios of these errors, with 95 % intervals ({RESAMPLES} bootstrap samples of the cases and of their draws). "
        "Below 1 `adaptive` is closer to the truth.",
        ratio_table(errors),
        "![Error against the number of samples, and bias by case](accuracy.png)",
        "## Standard error",
        "The standard deviation of `adaptive` over the draws of a case, divided by "
        f"`information_correlation(mi) / M ** 0.5`: quantiles over all cases of at least {LEAST_NATS} nats.",
        spread_table(errors),
        "## All estimators",
        f"Error by half, for the reported half with its 95 % interval ({RESAMPLES} bootstrap samples of the draws).",
        error_table(errors),
        "## All cases",
        f"Bias / root mean square error in nats at M = {CASE_SAMPLES}.",
        case_table(errors, CASE_SAMPLES, CASE_COLUMNS),
    ]
    write_page(out / "accuracy.md", "Accuracy", path.name, "python -m benchmarks.accuracy", sections)
    save(draw, out / "accuracy", errors, CASE_SAMPLES)


def by_estimator(rows: Sequence[Row]) -> Table:
    """In the order of `ESTIMATORS`."""
    found: Table = {}
    for row in rows:
        cases = row["result"]["cases"]
        truth = np.array([c["truth"] for c in cases.values()])
        estimates = np.array([c["estimates"] for c in cases.values()])
        halves = np.array([c["half"] for c in cases.values()])
        families = np.array([c["family"] for c in cases.values()])
        groups = np.where(np.isin(families, GROUPS), families, "continuous")
        key = row["case"]["estimator"], row["case"]["M"]
        found[key] = Errors(np.array(list(cases)), halves, groups, truth, estimates - truth[:, None])
    order = list(ESTIMATORS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def mean_rmse(values: np.ndarray) -> float:
    """Root mean square over the repeats, averaged over the cases."""
    return float(np.sqrt((values**2).mean(1)).mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of `mean_rmse`, resampling the repeats of every case."""
    rng = np.random.default_rng(0)
    n_cases, n_repeats = values.shape
    drawn = rng.integers(n_repeats, size=(RESAMPLES, n_cases, n_repeats))
    resampled = np.take_along_axis(values[None], drawn, axis=2)
    low, high = np.quantile(np.sqrt((resampled**2).mean(2)).mean(1), [0.025, 0.975])
    return float(low), float(high)


def summary_table(errors: Table) -> str:
    shown = [name for name in SUMMARY if any(name == other for other, _ in errors)]
    lines = []
    for group in GROUPS:
        for m in sorted({m for _, m in errors}):
            found = [
                errors[name, m].reported(group).values if (name, m) in errors else None for name in shown
            ]
            if any(values is not None and len(values) for values in found):
                cells = ["-" if values is None else f"{mean_rmse(values):.3f}" for values in found]
                lines.append([group, str(m), *cells])
    return table(["cases", "M", *(SUMMARY[name] for name in shown)], lines)


def ratio_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of two `mean_rmse`, resampling the cases and the repeats of each."""
    rng = np.random.default_rng(0)
    n_cases, n_repeats = ours.shape
    squares = np.stack([ours, theirs]) ** 2
    ratios = []
    for _ in range(RESAMPLES):
        cases = rng.integers(n_cases, size=(n_cases, 1))
        repeats = rng.integers(n_repeats, size=(n_cases, n_repeats))
        own, other = np.sqrt(squares[:, cases, repeats].mean(2)).mean(1)
        ratios.append(own / other)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def ratio_table(errors: Table) -> str:
    """The error of `adaptive` over that of the rivals."""
    lines = []
    for group in GROUPS:
        for m in sorted({m for name, m in errors if name == "adaptive"}):
            ours = errors["adaptive", m].reported(group).values
            cells = []
            for rival in RIVALS:
                if (rival, m) not in errors or not len(ours):
                    continue
                theirs = errors[rival, m].reported(group).values
                low, high = ratio_interval(ours, theirs)
                cells.append(f"{mean_rmse(ours) / mean_rmse(theirs):.2f} ({low:.2f} to {high:.2f})")
            if cells:
                lines.append([f"{len(ours)} {group}", str(m), *cells])
    return table(["cases", "M", *(f"adaptive / {name}" for name in RIVALS.values())], lines)


def spread_table(errors: Table) -> str:
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    lines = []
    for (name, m), found in errors.items():
        known = found.truth >= LEAST_NATS
        if name == "adaptive" and known.any():
            rule = np.sqrt(-np.expm1(-2 * found.truth[known]) / m)
            ratios = found.values[known].std(1, ddof=1) / rule
            lines.append([str(m), *(f"{q:.2f}" for q in np.quantile(ratios, shares))])
    return table(["M", *(f"{100 * share:g} %" for share in shares)], lines)


def error_table(errors: Table) -> str:
    def cell(found: Errors | None, half: str) -> str:
        if found is None:
            return ""
        values = found.half(half).values
        if not np.isfinite(values).all():  # KSG with several equal samples
            return "infinite"
        bounds = " ({:.4f} to {:.4f})".format(*interval(values)) if half == "reported" else ""
        return f"{mean_rmse(values):.4f}{bounds}"

    columns = [(m, half) for m in sorted({m for _, m in errors}) for half in HALVES]
    lines = [
        [name, *(cell(errors.get((name, m)), half) for m, half in columns)]
        for name in dict.fromkeys(name for name, _ in errors)
    ]
    return table(["estimator", *(f"M = {m}, {half}" for m, half in columns)], lines)


def case_table(errors: Table, n_samples: int, names: Sequence[str]) -> str:
    shown = [name for name in names if (name, n_samples) in errors]
    first = errors[shown[0], n_samples]
    lines = []
    for i, case in enumerate(first.names):
        by_name = [errors[name, n_samples].values[i] for name in shown]
        cells = [f"{v.mean():+.4f} / {np.sqrt((v**2).mean()):.4f}" for v in by_name]
        lines.append([case, first.halves[i], f"{first.truth[i]:.4f}", *cells])
    return table(["case", "half", "truth", *shown], lines)


def draw(errors: Table, n_samples: int) -> Figure:
    """Error against M on the reported half, and the bias on each of its cases at one M."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.4), width_ratios=(1, 1.15))
    draw_errors(left, errors)
    draw_biases(right, errors, n_samples)
    return figure


def draw_errors(axes: Axes, errors: Table) -> None:
    for name, color in LINES.items():
        samples = [m for other, m in errors if other == name]
        if not samples:
            continue
        values = [errors[name, m].reported("continuous").values for m in samples]
        means = np.array([mean_rmse(v) for v in values])
        bounds = np.array([interval(v) for v in values]).T
        strong = {"lw": 2.4, "zorder": 3} if name == "adaptive" else {"zorder": 2}
        spread = np.abs(bounds - means)
        axes.errorbar(samples, means, yerr=spread, label=name, color=color, marker="o", capsize=3, **strong)
    axes.set(
        yscale="log",
        xlabel="samples, M",
        ylabel="mean RMSE, nats",
        title="Error over the continuous reported cases",
    )
    size_ticks(axes, sorted({m for _, m in errors}))
    axes.legend(loc="lower left")


def draw_biases(axes: Axes, errors: Table, n_samples: int) -> None:
    for name, offset in OFFSETS.items():
        if (name, n_samples) not in errors:
            continue
        found = errors[name, n_samples].half("reported")
        order = np.argsort(found.truth, kind="stable")
        values = found.values[order]
        places = np.arange(len(values)) + offset
        half_width = 1.96 * values.std(1) / np.sqrt(values.shape[1])
        axes.errorbar(values.mean(1), places, xerr=half_width, fmt="o", lw=1.2, color=LINES[name], label=name)
        if name == "adaptive":
            axes.set_yticks(places, [f"{found.names[i]}  ({found.truth[i]:.2f})" for i in order], fontsize=8)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set(xlabel="bias in nats with 95 % intervals (logarithmic beyond 0.1)")
    axes.set_title(f"Bias by case (truth in nats), M = {n_samples:,}")
    axes.legend(loc="lower left")
