"""Prunes and evaluates with every method, and stores a row for each.

    python -m benchmarks.quality --data DIR --full --skip-done
    python -m benchmarks.quality.report

DIR holds wikitext-2/valid.txt and test.txt, and stsb/stsb-en-dev.csv and stsb-en-test.csv. Without --model, the models
that are installed as packages are taken. A causal model is measured by its perplexity on WikiText-2 and on a text
unlike it, an encoder by its rank correlation on STS-B. The dense model is always measured. --skip-done goes on where a
run was stopped: rows of the same conditions count, whatever the commit.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.quality.measure import DENSE, RATIOS, ROWS, Plan, Source, installed_models, measure
from benchmarks.quality.methods import GROUPS, METHODS
from benchmarks.quality.tasks import PROTOCOLS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--model", nargs="+", type=Source.parse, help="[NAME=]FOLDER or [NAME=]FILE.gguf, one or more"
    )
    parser.add_argument("--methods", nargs="+", choices=[DENSE, *METHODS], metavar="METHOD")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["8x512"], help="of perplexity")
    parser.add_argument("--full", action="store_true", help="all protocols of perplexity")
    parser.add_argument("--windows", type=int, default=112, help="of calibration")
    parser.add_argument("--length", type=int, default=512, help="of a window, tokens")
    parser.add_argument(
        "--encoder-length", type=int, default=32, help="the same for an encoder, with more windows"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-done", action="store_true")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--list", action="store_true", help="print the methods and stop")
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
    )
    sources = args.model or installed_models()
    failed = sum(measure(s, plan, args.out, skip_done=args.skip_done) for s in sources)
    return 1 if failed or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
