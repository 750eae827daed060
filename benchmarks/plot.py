"""Tables and plots of stored rows: `python -m benchmarks.plot`.

For each `results/throughput-DEVICE.jsonl` it writes `plots/throughput-DEVICE-*.png` and `.svg` and all tables to
`plots/throughput-DEVICE.md`, and one plot and one table into the README, between its markers. `plots/stages.md` has
the stages of pruning a model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import stages
from benchmarks.readme import write_block
from benchmarks.record import RESULTS
from benchmarks.throughput import figures
from benchmarks.throughput.rows import Row, conditions, load, of
from benchmarks.throughput.tables import comparison, comparison_notes, sweep

ROOT = RESULTS.parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=RESULTS.parent / "plots")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    if (rows_of_demo := args.results / "cpu.jsonl").exists():
        stages.write(rows_of_demo, args.plots)
    for path in sorted(args.results.glob("throughput-*.jsonl")):
        rows = load(path)
        figures.draw_all(rows, args.plots, path.stem)
        (args.plots / f"{path.stem}.md").write_text(all_tables(rows, path.stem), encoding="utf-8")
        if path.stem == "throughput-cpu":
            plot = args.plots / f"{path.stem}-error.png"
            block = summary(rows, plot.resolve().relative_to(args.readme.resolve().parent).as_posix())
            write_block(args.readme, "throughput", block)


def summary(rows: Sequence[Row], plot: str) -> str:
    """What the README shows: one plot and one table, with their conditions."""
    some = of(rows, "everyone")
    return "\n\n".join(
        [
            f"![Error against time of every variant]({plot})",
            comparison(some),
            f"{comparison_notes(some)} {conditions(some)}.",
        ]
    )


def all_tables(rows: Sequence[Row], name: str) -> str:
    """Every series as Markdown, with the plots."""
    parts = ["# Throughput", f"{conditions(rows)}. Made by `python -m benchmarks.plot` from `{name}.jsonl`."]
    for series in dict.fromkeys(r["case"]["series"] for r in rows):
        some = of(rows, series)
        parts.append(f"## {series[0].upper()}{series[1:]}")
        if " over " in series:
            parts.append(sweep(some, series))
        else:
            parts += [comparison(some), comparison_notes(some)]
    parts += [f"![{what}]({name}-{what}.png)" for what in ("error", "scaling", "roofline")]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
