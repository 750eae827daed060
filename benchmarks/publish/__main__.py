"""Generate the pages and plots of the stored rows, beside the rows.

    python -m benchmarks.publish [PAGE ...] [--rows DIR] [--out DIR]

Without PAGE, all pages whose rows exist are generated.
"""

from pathlib import Path

from benchmarks.publish import accuracy, glue, gpu, quality, reliability, sizes, stages, texts, throughput
from benchmarks.record import RESULTS, argument_parser

PAGES = {
    "accuracy": ("accuracy.jsonl", accuracy.publish),
    "glue": ("glue.jsonl", glue.publish),
    "gpu": ("gpu.jsonl", gpu.publish),
    "quality": ("quality.jsonl", quality.publish),
    "reliability": ("reliability.jsonl", reliability.publish),
    "sizes": ("sizes.jsonl", sizes.publish),
    "stages": ("cpu.jsonl", stages.publish),
    "texts": ("texts.jsonl", texts.publish),
    "throughput": ("throughput-*.jsonl", throughput.publish),
}
"""The rows of each page, and the function that takes the file of rows and the folder to write to."""


def main() -> None:
    parser = argument_parser("benchmarks.publish", __doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=", ".join(PAGES))
    parser.add_argument("--rows", type=Path, default=RESULTS, help="folder with the rows")
    parser.add_argument("--out", type=Path, help="folder for pages and plots (default: that of the rows)")
    args = parser.parse_args()
    if unknown := set(args.pages) - PAGES.keys():
        parser.error(f"PAGE: expected some of {', '.join(PAGES)}, got {', '.join(sorted(unknown))}")
    out = args.out or args.rows
    out.mkdir(parents=True, exist_ok=True)
    for name in args.pages or PAGES:
        pattern, publish = PAGES[name]
        for path in sorted(args.rows.glob(pattern)):
            publish(path, out)


if __name__ == "__main__":
    main()
