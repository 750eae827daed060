"""Prune with every method, evaluate, and store a row for each.

    python -m benchmarks.quality --data DIR --full --skip-done
    python -m benchmarks.publish quality

DIR contains wikitext-2/valid.txt and test.txt, and stsb/stsb-en-dev.csv and stsb-en-test.csv. Without --model, the
models that are installed as packages are measured. A causal model is measured by its perplexity, an encoder by its
rank correlation on STS-B. The dense model is always measured. --skip-done resumes an interrupted run: it skips what is
stored under the same conditions, whatever the commit.
"""

import sys

from benchmarks.quality.measure import DENSE, RATIOS, Plan, add_sources, measure, sources
from benchmarks.quality.methods import GROUPS, METHODS
from benchmarks.quality.tasks import PROTOCOLS
from benchmarks.record import argument_parser


def main() -> int:
    parser = argument_parser("benchmarks.quality", __doc__, "quality.jsonl")
    add_sources(parser)
    parser.add_argument("--methods", nargs="+", choices=[DENSE, *METHODS], metavar="METHOD")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["8x512"], help="of perplexity")
    parser.add_argument("--full", action="store_true", help="all protocols of perplexity")
    parser.add_argument("--length", type=int, default=512, help="tokens in a calibration window")
    parser.add_argument(
        "--encoder-length", type=int, default=32, help="the same for encoders, which get more windows"
    )
    parser.add_argument(
        "--float32", action="store_true", help="in place of the dtype of a language model's weights"
    )
    parser.add_argument("--skip-done", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the methods and exit")
    args = parser.parse_args()
    names = args.methods or METHODS
    methods = [m for m in METHODS.values() if m.name in names and m.group in args.groups]
    if args.list:
        print("\n".join(f"{m.group}: {m.name}" for m in methods))
        return 0
    plan = Plan(
        args.data,
        methods,
        args.ratios,
        list(PROTOCOLS) if args.full else args.protocols,
        args.windows,
        args.length,
        args.encoder_length,
        args.seed,
        args.float32,
    )
    models = sources(args)
    failed = sum(measure(model, plan, args.out, skip_done=args.skip_done) for model in models)
    return 1 if failed or not models else 0


if __name__ == "__main__":
    sys.exit(main())
