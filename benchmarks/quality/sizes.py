"""How much the choice of the criterion matters in models of several sizes, on four kinds of text.

    python -m benchmarks.quality.sizes --data DIR --model SmolLM2-135M=FILE.gguf Qwen2.5-0.5B=FOLDER
    python -m benchmarks.publish sizes

Each criterion drops the same share of neurons of every layer, without and with repair, from one calibration; the texts
and DIR are those of `benchmarks.quality.texts`.
"""

import gc
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.quality.calibrated import Calibrated
from benchmarks.quality.measure import Source, add_sources, sources
from benchmarks.quality.methods import CRITERIA, METHODS, REPAIRS
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.texts import (
    LENGTH,
    calibrate,
    calibration_entry,
    evaluate,
    evaluation_windows,
    outcome,
)
from benchmarks.record import append, argument_parser, command, row, timed
from pruning import Settings
from pruning.model.size import count_parameters

COMPARED = [
    *(f"{criterion}, {repair}" for repair in REPAIRS for criterion in CRITERIA),
    "flap, sequential",
    "conditional-mi, sequential",
]


def measure(
    source: Source,
    data: Path,
    calibration: str,
    methods: Iterable[str],
    ratios: Iterable[float],
    *,
    tokens: int,
    sample_size: int,
    n_windows: int,
    seed: int,
    out: Path,
) -> None:
    """Append a row for each method and ratio."""
    model, tokenizer = source.load()
    if not model.can_generate():
        print(f"{source.name}: skipped, it has no perplexity")
        return
    model = model.float()
    windows = evaluation_windows(tokenizer, data, n_windows)
    dense = evaluate(model, windows)
    print(source.name, {name: round(value.value, 2) for name, value in dense.items()}, flush=True)
    common = Settings(calibration_tokens=tokens, sequence_length=LENGTH, seed=seed)
    read, spent = timed(lambda: calibrate(model, tokenizer, calibration, data, common).rectangle())
    calibrated = Calibrated(model, read, seed=seed, sample_size=sample_size)
    for ratio in ratios:
        for name in methods:
            method = METHODS[name]
            if reason := method.obstacle(model):
                print(f"{name}: skipped, {reason}")
                continue
            pruned, seconds = calibrated.prune(method, ratio)
            case = {
                "model": source.name,
                "parameters": count_parameters(model),
                "calibration": calibration_entry(calibration, read.numel()),
                "method": name,
                "ratio": ratio,
                "settings": dict(method.settings),
                "sample_size": sample_size,
                "windows": n_windows,
                "seed": seed,
            }
            result = outcome(pruned, dense, windows, {"calibration": spent} | seconds)
            again = command(
                "benchmarks.quality.sizes",
                data="DIR",
                model=f"{source.name}=...",
                device=source.device,
                calibration=calibration,
                methods=name,
                ratios=ratio,
                tokens=tokens,
                sample_size=sample_size,
                windows=n_windows,
                seed=seed,
            )
            versions = RIVALS[method.rival].versions() if method.rival else None
            append([row("quality.sizes", again, case, result, versions, device=source.device)], out)
            print(source.name, name, ratio, result["pruned"]["geometric_mean"], flush=True)
            del pruned
            gc.collect()


def main() -> int:
    parser = argument_parser("benchmarks.quality.sizes", __doc__, "sizes.jsonl")
    add_sources(parser)
    parser.set_defaults(windows=4)
    parser.add_argument("--calibration", default="self,builtin", metavar="SOURCES")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=COMPARED)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--tokens", type=int, default=16_384, help="of calibration")
    parser.add_argument(
        "--sample-size", type=int, default=Settings().sample_size, help="tokens for the mutual information"
    )
    args = parser.parse_args()
    models = sources(args)
    for model in models:
        measure(
            model,
            args.data,
            args.calibration,
            args.methods,
            args.ratios,
            tokens=args.tokens,
            sample_size=args.sample_size,
            n_windows=args.windows,
            seed=args.seed,
            out=args.out,
        )
    return 0 if models else 1


if __name__ == "__main__":
    sys.exit(main())
