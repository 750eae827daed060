"""Measure the throughput of every series in `cases`, or of one case as in the `command` of a stored row.

python -m benchmarks.speed                 # everything, to results/throughput-cpu.jsonl
python -m benchmarks.speed --device cuda
python -m benchmarks.speed --series "grid over N" --cap 300
python -m benchmarks.speed --variant my_package.my_module:my_function --sizes 64x500,256x2000

`--variant` puts a function of your own into the table: from normal scores `[M, N]`, a float32 tensor, to `[N, N]` nats.
Without `--series` it is compared with the variants of the series "everyone".
"""

import json
from pathlib import Path

import torch

from benchmarks.record import RESULTS, append, argument_parser
from benchmarks.speed.cases import Case, Series, all_series, with_options
from benchmarks.speed.measure import Effort, series_rows
from benchmarks.speed.variants import find


def size_of(text: str) -> tuple[int, int]:
    """N and M of `NxM`."""
    n, m = (int(number) for number in text.split("x"))
    return n, m


def main() -> None:
    parser = argument_parser("benchmarks.speed", __doc__)
    parser.add_argument("--series", help="only the series with this name")
    parser.add_argument("--case", type=json.loads, help="a single case, as JSON of its fields")
    parser.add_argument(
        "--variants", type=lambda names: tuple(names.split(",")), help="of that case, comma-separated"
    )
    parser.add_argument(
        "--variant", action="append", default=[], help="also measure package.module:function; can be repeated"
    )
    parser.add_argument(
        "--sizes",
        type=lambda sizes: tuple(size_of(size) for size in sizes.split(",")),
        default=(),
        help="in place of those of the series: NxM,... (variables x samples)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--turns", type=int, default=Effort.turns, help="maximum timed calls per variant")
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="for all turns of a variant")
    parser.add_argument("--cap", type=float, default=Effort.cap, help="skip calls expected to take longer")
    parser.add_argument("--out", type=Path, help="default: results/throughput-DEVICE.jsonl")
    args = parser.parse_args()
    for variant in args.variant:
        try:
            reason = find(variant).missing()
        except ValueError as error:
            parser.error(str(error))
        if reason:
            parser.error(f"argument --variant: {reason}")
    torch.set_num_threads(args.threads)
    if args.case:
        chosen = [Series(args.series or "one", (Case(**args.case),), args.variants or ("ours",))]
        args.device = chosen[0].cases[0].device
    else:
        name = args.series or ("everyone" if args.variant or args.sizes else None)
        found = [s for s in all_series(args.device, args.seed) if name in (None, s.name)]
        if not found:
            parser.error(f"argument --series: expected the name of a series, got {name!r}")
        chosen = [with_options(s, args.sizes, tuple(args.variant)) for s in found]
    out = args.out or RESULTS / f"throughput-{args.device}.jsonl"
    for series in chosen:
        append(series_rows(series, Effort(args.turns, args.seconds, args.cap)), out)


if __name__ == "__main__":
    main()
