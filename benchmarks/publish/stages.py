"""The page of the stages of pruning: measured by the demo, predicted by the cost model for larger models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gpu import cost
from benchmarks.publish.page import conditions, machine, write_page
from benchmarks.publish.plots import INK, save
from benchmarks.record import Row, load
from benchmarks.tables import duration, percent, table

Seconds = Mapping[str, float]  # by stage
CHIP = "H200"
LARGE = "Llama 7B"
"""In rows `plan` of a GPU, all layers of which were pruned."""
STAGE_COLORS = ("#1f5fa8", "#2a8f82", "#b9772c", "#7a5aa6", "#7d828b", "#a8505f")
ROOM_FOR_TEXT = 0.06  # share of a bar that fits a time
PREDICTION = (
    f"Lower bounds from the data sheet of one {CHIP}, assuming that the weights fit on it and that "
    f"{percent(cost.RATIO)} of the neurons are dropped. N is the number of neurons of a layer, K of them are kept, and "
    f"d is the width of the stream; calibration has {cost.TOKENS_PER_NEURON} tokens for each kept neuron. *capture*: "
    "the dense and the pruned stream, 4 x parameters x tokens, and the second moments of each layer in both, 6 N (N + "
    f"d) x tokens, in 16 bits. *measure*: `grid` in int8 with {cost.SAMPLES:,} samples, and backward elimination, N³ "
    "for the inverse of the moments and 2/3 N³ for the order. *select*: variance explained by the kept neurons, K³/3 + "
    "2 K² (N - K). *repair*: sequential, the FFN again, 6 K d x tokens in 16 bits, K³/3 + 2 K² d. "
    f"Linear algebra in fp64. *save*: 16-bit weights to a disk of {cost.DISK / 1e9:.0f} GB/s."
)


def publish(path: Path, out: Path) -> None:
    """Write the page of the last row `demo` in the file, if there is one."""
    demos = [row for row in load(path) if row["benchmark"] == "demo"]
    if not demos:
        return
    demo = demos[-1]
    case = demo["case"]
    predicted = {name: cost.stages(model, CHIP) for name, model in cost.MODELS.items()}
    large = [
        row
        for row in load(path.with_name("gpu.jsonl"))
        if row["benchmark"] == "plan" and row["case"]["model"] == LARGE and row["result"]["measured_seconds"]
    ]
    sections = [
        "Time of each stage of pruning a model: **measured** for a small model on a CPU and for one of 7 billion "
        "random weights on a GPU, *predicted*, not measured, for large models on a GPU.",
        stage_table(demo, large[-1:], predicted),
        "![Share of each stage](stages.png)",
        f"**Measured**: {model_name(demo)}, {case['calibration_tokens']:,} calibration tokens, MI by "
        f"`{case['estimator']}` from {case['sample_size']:,} samples, {percent(case['ratio'])} of the neurons dropped. "
        "A stage without a time was not timed separately; the MI of dropped with kept neurons, all that this run "
        f"needs, counts in *select*. {conditions([demo])}",
        *(_of_large(row) for row in large[-1:]),
        f"*Predicted*: {PREDICTION}",
    ]
    write_page(out / "stages.md", "Stages of pruning", path.name, "python -m benchmarks.speed.demo", sections)
    save(draw, out / "stages", demo, predicted)


def _of_large(row: Row) -> str:
    case = row["case"]
    return (
        f"**Measured**: the shape of {LARGE}, {case['layers']} layers of random weights in {case['dtype']} on the "
        f"GPU, {case['tokens']:,} tokens, {percent(case['ratio'])} of the neurons dropped; nothing was saved. What a "
        f"stage left to run on the GPU counts in the next one that waited: only the sum is exact. "
        f"{machine(row)}, torch {row['versions']['torch']}, commit {row['commit']}, {row['date']}."
    )


def stage_table(demo: Row, large: Sequence[Row], predicted: Mapping[str, Seconds]) -> str:
    measured = [row["result"]["measured_seconds"] for row in large]
    columns = [demo["result"]["seconds_of_stages"], *measured, *predicted.values()]
    lines = [
        [stage, *(duration(column[stage]) if stage in column else "" for column in columns)]
        for stage in stage_names(columns)
    ]
    lines.append(["sum", *(duration(sum(column.values())) for column in columns)])
    names = [model_name(demo), *(f"{LARGE} on an {machine(row)}" for row in large)]
    return table(
        ["", *(f"{name}, **measured**" for name in names), *(f"{name}, *predicted*" for name in predicted)],
        lines,
    )


def stage_names(columns: Sequence[Seconds]) -> list[str]:
    """All stages, in the order of the column with the most."""
    longest = max(columns, key=len)
    return list(dict.fromkeys([*longest, *(stage for column in columns for stage in column)]))


def model_name(demo: Row) -> str:
    return str(demo["case"]["model"]).split(".")[0].removesuffix("-Instruct")


def draw(demo: Row, predicted: Mapping[str, Seconds]) -> Figure:
    """The share of each stage: measured filled, predicted hatched, on separate axes."""
    measured = {model_name(demo): demo["result"]["seconds_of_stages"]}
    names = stage_names([*measured.values(), *predicted.values()])
    tints = dict(zip(names, STAGE_COLORS, strict=False))
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.2, 3.6), sharex=True, height_ratios=(1, len(predicted))
    )
    _bars(above, measured, tints, hatched=False)
    _bars(below, predicted, tints, hatched=True)
    above.set_title(f"Measured: {machine(demo)}", weight="bold")
    below.set_title(f"Predicted, not measured: lower bounds on one {CHIP}", style="italic")
    below.set(xlim=(0, 1), xlabel="share of the total time")
    below.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    squares = [plt.Rectangle((0, 0), 1, 1, color=tint) for tint in tints.values()]
    figure.legend(squares, list(tints), loc="outside lower center", ncols=len(tints))
    return figure


def _bars(axes: Axes, columns: Mapping[str, Seconds], tints: Mapping[str, str], *, hatched: bool) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if hatched else None
    ink = INK if hatched else "white"
    for name, seconds in columns.items():
        total, left = sum(seconds.values()), 0.0
        for stage, value in seconds.items():
            share, tint = value / total, tints[stage]
            look = {"facecolor": "white", "edgecolor": tint, "hatch": "////"} if hatched else {"color": tint}
            axes.barh(name, share, left=left, height=0.62, **look)
            if share > ROOM_FOR_TEXT:
                middle = left + share / 2
                axes.text(
                    middle, name, duration(value), color=ink, bbox=box, fontsize=8, ha="center", va="center"
                )
            left += share
        axes.text(1.01, name, duration(total), color=INK, va="center", weight="normal" if hatched else "bold")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=hatched)
