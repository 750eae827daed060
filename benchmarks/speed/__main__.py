"""Measure the throughput of every series in `cases`, or of one case as in the `command` of a stored row.

python -m benchmarks.speed                 # everything, to results/throughput-cpu.jsonl
python -m benchmarks.speed --device cuda
python -m benchmarks.speed --series "grid over N" --cap 300
"""

import json
from pathlib import Path

import torch

from benchmarks.record import RESULTS, append, argument_parser
from benchmarks.speed.cases import Case, Series, all_series
from benchmarks.speed.measure import Effort, series_rows


def main() -> None:
    parser = argument_parser("benchmarks.speed", __doc__)
    parser.add_argument("--series", help="only the series with this name")
    parser.add_argument("--case", type=json.loads, help="a single case, as JSON of its fields")
    parser.add_argument(
        "--variants", type=lambda names: tuple(names.split(",")), help="of that case, comma-separated"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--turns", type=int, default=Effort.turns, help="maximum timed calls per variant")
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="for all turns of a variant")
    parser.add_argument("--cap", type=float, default=Effort.cap, help="skip calls expected to take longer")
    parser.add_argument("--out", type=Path, help="default: results/throughput-DEVICE.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        chosen = [Series(args.series or "one", (Case(**args.case),), args.variants or ("ours",))]
        args.device = chosen[0].cases[0].device
    else:
        chosen = [s for s in all_series(args.device, args.seed) if args.series in (None, s.name)]
    out = args.out or RESULTS / f"throughput-{args.device}.jsonl"
    for series in chosen:
        append(series_rows(series, Effort(args.turns, args.seconds, args.cap)), out)


if __name__ == "__main__":
    main()
