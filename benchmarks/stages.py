"""Where the time of pruning a model goes: measured in the last row `demo`, predicted by `benchmarks.cost` for larger
models. The two stand apart in table and plot, which `python -m benchmarks.plot` makes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import cost
from benchmarks.throughput.figures import INK, save
from benchmarks.throughput.tables import duration, table

Seconds = Mapping[str, float]
"""Of each stage."""

CHIP = "H100"
COLOURS = ("#1f5fa8", "#2a8f82", "#b9772c", "#7a5aa6", "#7d828b", "#a8505f")
ROOM_FOR_TEXT = 0.06
"""Share of a bar that a time fits in."""


def write(results: Path, folder: Path) -> None:
    """`stages.md` and its plot, if `results` (a file of rows) has a row of the demo."""
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    demos = [row for row in rows if row["benchmark"] == "demo"]
    if not demos:
        return
    predicted = {name: cost.stages(model, CHIP) for name, model in cost.MODELS.items()}
    save(draw, (demos[-1], predicted), folder / "stages")
    (folder / "stages.md").write_text(text(demos[-1], predicted), encoding="utf-8")


def text(demo: Mapping[str, Any], predicted: Mapping[str, Seconds]) -> str:
    """The page: what was measured, what is predicted, under which conditions."""
    columns = [demo["result"]["seconds_of_stages"], *predicted.values()]
    body = [
        [stage, *(duration(column[stage]) if stage in column else "" for column in columns)]
        for stage in names(columns)
    ]
    body.append(["sum", *(duration(sum(column.values())) for column in columns)])
    head = ["", f"{model(demo)}, **measured**", *(f"{name}, *predicted*" for name in predicted)]
    parts = [
        "# The stages of pruning a model",
        "Made by `python -m benchmarks.plot` from the last row `demo` of `cpu.jsonl` and `benchmarks.cost`.",
        table(head, body),
        f"**Measured**: {how_measured(demo)}",
        f"*Predicted*, not measured: {how_predicted()}",
        "![Shares of the stages](stages.png)",
    ]
    return "\n\n".join(parts) + "\n"


def how_measured(demo: Mapping[str, Any]) -> str:
    case = demo["case"]
    return (
        f"{model(demo)} on {machine(demo)}, torch {demo['versions']['torch']}, commit {demo['commit']}, "
        f"{demo['date']}: `{demo['command']}`, {case['calibration_tokens']:,} tokens of calibration, MI by "
        f"{case['estimator']} of {case['sample_size']:,} samples, {case['ratio']:.0%} of the neurons dropped, "
        f"seed {case['seed']}. A stage without a time was not timed on its own."
    )


def how_predicted() -> str:
    return (
        f"floors by the data sheet of one {CHIP}, as if the weights fitted on it, {cost.RATIO:.0%} of the neurons "
        "dropped, K of N kept, d the width of the stream. capture: the dense and the pruned stream, 4 x parameters x "
        "tokens in fp16, and 2 N² x tokens in fp32 for the second moments of each layer, "
        f"{cost.TOKENS_PER_NEURON} tokens for each kept neuron. measure: "
        f"`grid` in int8, {cost.SAMPLES:,} samples, and backward elimination, N³ for the inverse of the moments and "
        "2/3 N³ for the order. select: what the kept neurons explain, K³/3 + 2 K² (N - K). repair: sequential, "
        "the FFN again, 6 K d x tokens in fp16, 2 K (K + d) x tokens of moments, K³/3 + 2 K² d. Algebra in fp64. save: "
        "16-bit weights to a "
        f"disk of {cost.DISK / 1e9:.0f} GB/s."
    )


def draw(demo: Mapping[str, Any], predicted: Mapping[str, Seconds]) -> Figure:
    """The share of each stage: measured filled, predicted hatched, on axes of their own."""
    measured = {model(demo): demo["result"]["seconds_of_stages"]}
    tints = dict(zip(names([*measured.values(), *predicted.values()]), COLOURS, strict=False))
    plt.rcParams["hatch.linewidth"] = 0.5
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.2, 3.6), sharex=True, height_ratios=(1, len(predicted))
    )
    _bars(above, measured, tints, hatched=False)
    _bars(below, predicted, tints, hatched=True)
    above.set_title(f"Measured: {machine(demo)}", weight="bold")
    below.set_title(f"Predicted, not measured: floors on one {CHIP}", style="italic")
    below.set(xlim=(0, 1), xlabel="share of the time of all stages")
    below.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    squares = [plt.Rectangle((0, 0), 1, 1, color=tint) for tint in tints.values()]
    figure.legend(squares, list(tints), loc="outside lower center", ncols=len(tints), frameon=False)
    return figure


def _bars(axes: Axes, columns: Mapping[str, Seconds], tints: Mapping[str, str], *, hatched: bool) -> None:
    for name, seconds in columns.items():
        total, left = sum(seconds.values()), 0.0
        for stage, value in seconds.items():
            share, tint = value / total, tints[stage]
            look = {"facecolor": "white", "edgecolor": tint, "hatch": "////"} if hatched else {"color": tint}
            axes.barh(name, share, left=left, height=0.62, **look)
            if share > ROOM_FOR_TEXT:
                axes.text(
                    *(left + share / 2, name, duration(value)),
                    color=INK if hatched else "white",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if hatched else None,
                    fontsize=8,
                    ha="center",
                    va="center",
                )
            left += share
        axes.text(1.01, name, duration(total), color=INK, va="center", weight="normal" if hatched else "bold")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=hatched)


def names(columns: Sequence[Seconds]) -> list[str]:
    """All stages; those that only some columns have stand where these have them."""
    longest = max(columns, key=len)
    return list(dict.fromkeys([*longest, *(stage for column in columns for stage in column)]))


def model(demo: Mapping[str, Any]) -> str:
    return str(demo["case"]["model"]).split(".")[0].removesuffix("-Instruct")


def machine(demo: Mapping[str, Any]) -> str:
    where = demo["machine"]
    return str(where.get("gpu", f"{where['threads']} threads of {where['cpu']}"))
