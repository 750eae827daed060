"""How much the choice of the criterion matters, by model and by what is done about the loss.

    python -m benchmarks.quality.spread MODEL... [--data DIR]

MODEL is a name that stored rows have, or with --data [NAME=]FOLDER or [NAME=]FILE.gguf, of which missing rows are
measured first. For each repair that several criteria share: the standard deviation over them of the logarithm of
perplexity (of the correlation for encoders), and the largest perplexity as a multiple of the least.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.measure import ROWS, Plan, Source, measure
from benchmarks.quality.methods import CRITERIA, METHODS, REPAIRS
from benchmarks.quality.scores import Sheet, sheets
from pruning.report.table import table


def spread_rows(found: Sequence[Sheet], ratio: float, criteria: Sequence[str]) -> list[tuple[str, ...]]:
    """By model size, then by repair."""
    rows = []
    for sheet in sorted(found, key=lambda s: s.last["case"]["parameters"]):
        for repair, group in REPAIRS.items():
            scores = [sheet.scores.get((f"{criterion}, {repair}", ratio)) for criterion in criteria]
            logarithmic = sheet.measure == "perplexity"
            values = np.array([np.log(s.value) if logarithmic else s.value for s in scores if s is not None])
            if len(values) < 2:
                continue
            most = f"{np.exp(values.max() - values.min()):,.3g}" if logarithmic else "-"
            millions = f"{sheet.last['case']['parameters'] / 1e6:.1f}"
            count = str(len(values))
            rows.append(
                (sheet.model, millions, sheet.protocol, group, count, f"{values.std(ddof=1):.3f}", most)
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.spread",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", type=Source.parse, metavar="MODEL")
    parser.add_argument("--data", type=Path, help="measure what is missing, with texts from here")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument("--windows", type=int, default=112, help="of calibration, where rows are missing")
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    if args.data is not None:
        methods = [METHODS[f"{criterion}, {repair}"] for repair in REPAIRS for criterion in args.criteria]
        plan = Plan(args.data, methods, [args.ratio], windows=args.windows)
        for source in args.models:
            measure(source, plan, args.rows, skip_done=True)
    names = [source.name for source in args.models]
    found = [sheet for sheet in sheets(args.rows) if sheet.model in names]
    header = ("model", "parameters (M)", "protocol", "repair", "criteria", "deviation", "largest / least")
    print(table(spread_rows(found, args.ratio, args.criteria), header))


if __name__ == "__main__":
    main()
