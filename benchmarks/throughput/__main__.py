"""Records throughput: every series of `cases`, or one case as a stored row's `command` says.

python -m benchmarks.throughput                 # all, to results/throughput-cpu.jsonl
python -m benchmarks.throughput --device cuda
python -m benchmarks.throughput --series "grid over N" --cap 300
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.record import RESULTS, append
from benchmarks.throughput.cases import Case, Series, all_series
from benchmarks.throughput.measure import Effort, series_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--series", help="only the series of this name")
    parser.add_argument("--case", type=json.loads, help="a single case, as JSON of its fields")
    parser.add_argument(
        "--variants", type=lambda names: tuple(names.split(",")), help="of that case; ours first"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument(
        "--turns", type=int, default=Effort.turns, help="timed calls of each variant, at most"
    )
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="for all turns of one variant")
    parser.add_argument("--cap", type=float, default=Effort.cap, help="no call that should take more seconds")
    parser.add_argument("--out", type=Path, help="by default results/throughput-DEVICE.jsonl")
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
