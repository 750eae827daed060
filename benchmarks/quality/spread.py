"""Show how much the choice of the criterion matters, by model and by repair.

    python -m benchmarks.quality.spread MODEL... [--data DIR]

MODEL is a name in stored rows. With --data it is [NAME=]FOLDER or [NAME=]FILE.gguf, and missing rows are measured
first. For each repair that several criteria share, prints the standard deviation over the criteria of the logarithm of
perplexity (for encoders, of the correlation), and the ratio of the largest to the smallest perplexity.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.measure import Plan, Source, measure
from benchmarks.quality.methods import CRITERIA, METHODS, REPAIRS
from benchmarks.quality.scores import Sheet, sheets
from benchmarks.record import argument_parser
from benchmarks.tables import table

HEAD = ["model", "parameters (M)", "protocol", "repair", "criteria", "deviation", "largest / smallest"]


def spread_rows(found: Sequence[Sheet], ratio: float, criteria: Sequence[str]) -> list[list[str]]:
    """Lines of the table, by size of the model, then by repair."""
    lines = []
    for sheet in sorted(found, key=lambda s: s.last["case"]["parameters"]):
        for repair, group in REPAIRS.items():
            scores = [sheet.scores.get((f"{criterion}, {repair}", ratio)) for criterion in criteria]
            logarithmic = sheet.measure == "perplexity"
            values = np.array([np.log(s.value) if logarithmic else s.value for s in scores if s is not None])
            if len(values) < 2:
                continue
            factor = f"{np.exp(values.max() - values.min()):,.3g}" if logarithmic else "-"
            millions = f"{sheet.last['case']['parameters'] / 1e6:.1f}"
            deviation = f"{values.std(ddof=1):.3f}"
            lines.append([sheet.model, millions, sheet.protocol, group, str(len(values)), deviation, factor])
    return lines


def main() -> None:
    parser = argument_parser("benchmarks.quality.spread", __doc__, "quality.jsonl")
    parser.add_argument("models", nargs="+", type=Source.parse, metavar="MODEL")
    parser.add_argument("--data", type=Path, help="measure missing rows with the texts in this folder")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument("--windows", type=int, default=112, help="of calibration, for missing rows")
    args = parser.parse_args()
    if args.data is not None:
        methods = [METHODS[f"{criterion}, {repair}"] for repair in REPAIRS for criterion in args.criteria]
        plan = Plan(args.data, methods, [args.ratio], windows=args.windows, seed=args.seed)
        for source in args.models:
            measure(source, plan, args.out, skip_done=True)
    names = [source.name for source in args.models]
    found = [sheet for sheet in sheets(args.out) if sheet.model in names]
    print(table(HEAD, spread_rows(found, args.ratio, args.criteria)))


if __name__ == "__main__":
    main()
