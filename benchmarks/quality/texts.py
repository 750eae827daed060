"""Quality on four kinds of text, by what the model was calibrated on.

    python -m benchmarks.quality.texts --data DIR --calibrations self,builtin builtin wikitext
    python -m benchmarks.publish texts

A model that is measured on the kind of text that it was calibrated on looks better than it is. Here each is measured
on all four: the test split of WikiText-2, the half of the language reference that ships with CPython which is never
calibrated on, English prose (the premises of the development set of RTE) and Python code (of numpy). A calibration is a
list of sources with weights, as for `mi-prune --calibration`, or `wikitext` (the validation split).

DIR contains wikitext-2/valid.txt, wikitext-2/test.txt and glue/RTE/dev.tsv.
"""

import copy
import csv
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.quality.measure import Source, add_sources, sources
from benchmarks.quality.methods import METHODS
from benchmarks.quality.tasks import evenly_spaced
from benchmarks.record import append, argument_parser, command, row, timed
from pruning import Settings, prune
from pruning.model.size import count_parameters
from pruning.observe.batches import Windows
from pruning.observe.mixture import text_windows
from pruning.observe.samples import PASSAGE, SELF
from pruning.observe.sources import open_sources
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.report.quality import Perplexity, log_ratio_error, perplexity

LENGTH = 512
ESTIMATE: Any = {"sample_size": 512, "nodes": 8}
"""A small sample for the mutual information, which serves only the explanation here: no criterion below reads it."""


def evaluation_texts(data: Path) -> dict[str, str]:
    """The four texts, by name."""
    with (data / "glue" / "RTE" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    package = Path(numpy.__file__).parent
    modules = sorted([*(package / "ma").glob("*.py"), *(package / "linalg").glob("*.py")])
    return {
        "WikiText-2": read_text(data / "wikitext-2" / "test.txt"),
        "Python reference": builtin_text()[1],
        "prose": "\n\n".join(record["sentence1"] for record in records),
        "code": "\n\n".join(module.read_text(encoding="utf-8") for module in modules),
    }


def evaluation_windows(tokenizer: PreTrainedTokenizerBase, data: Path, count: int) -> dict[str, Tensor]:
    """At most `count` windows of each text, spread evenly over it."""
    texts = evaluation_texts(data)
    return {
        name: evenly_spaced(token_windows(tokenizer, text, LENGTH), count) for name, text in texts.items()
    }


def evaluate(model: PreTrainedModel, windows: dict[str, Tensor]) -> dict[str, Perplexity]:
    return {name: perplexity(model, part.split(4)) for name, part in windows.items()}


def compare(dense: dict[str, Perplexity], pruned: dict[str, Perplexity]) -> dict[str, Any]:
    """Perplexity, its ratio to the dense one with the standard error of the ratio's logarithm, by text; and the
    geometric mean and the largest of the ratios."""
    ratios = {name: pruned[name].value / dense[name].value for name in dense}
    return {
        "texts": {
            name: {
                "perplexity": round(pruned[name].value, 4),
                "ratio": round(ratios[name], 4),
                "log_ratio_standard_error": round(log_ratio_error(dense[name], pruned[name]), 4),
                "nll": [round(value, 5) for value in pruned[name].nll.tolist()],
            }
            for name in dense
        },
        "geometric_mean": round(math.exp(sum(map(math.log, ratios.values())) / len(ratios)), 4),
        "mean": round(sum(ratios.values()) / len(ratios), 4),
        "worst": round(max(ratios.values()), 4),
    }


def outcome(
    pruned: PreTrainedModel,
    dense: dict[str, Perplexity],
    windows: dict[str, Tensor],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The result of a row: quality beside that of the dense model, size, and the seconds of each stage."""
    return {
        "dense": {text: round(value.value, 4) for text, value in dense.items()},
        "pruned": compare(dense, evaluate(pruned, windows)),
        "parameters": count_parameters(pruned),
        "seconds": {stage: round(s, 1) for stage, s in seconds.items()},
    }


def has_own_text(sources: str) -> bool:
    """Whether what the model writes itself is among the sources."""
    return any(part.split("=")[0] == SELF for part in sources.split(","))


def calibration_entry(sources: str, n_tokens: int) -> dict[str, Any]:
    """What a row says of its calibration."""
    own = {"passage": PASSAGE} if has_own_text(sources) else {}
    return {"sources": sources, "tokens": n_tokens, "length": LENGTH} | own


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: str,
    data: Path,
    settings: Settings,
) -> Windows:
    """The windows of tokens that a calibration, as on the command line, stands for."""
    valid = str(data / "wikitext-2" / "valid.txt")
    named = [part.replace("wikitext", valid) for part in calibration.split(",")]
    return text_windows(
        model,
        tokenizer,
        open_sources(named),
        settings,
        n_tokens=settings.calibration_tokens,
        progress=True,
    )


def measure(
    source: Source,
    data: Path,
    calibrations: Iterable[str],
    methods: Iterable[str],
    ratios: Iterable[float],
    *,
    tokens: int,
    n_windows: int,
    dtype: str,
    seed: int,
    out: Path,
) -> None:
    """Append a row for each calibration, method and ratio."""
    model, tokenizer = source.load()
    model = model.to(getattr(torch, dtype))
    windows = evaluation_windows(tokenizer, data, n_windows)
    dense = evaluate(model, windows)
    print({name: round(value.value, 2) for name, value in dense.items()}, flush=True)
    common = Settings(calibration_tokens=tokens, sequence_length=LENGTH, seed=seed, **ESTIMATE)
    for calibration in calibrations:
        read, spent = timed(lambda c=calibration: calibrate(model, tokenizer, c, data, common))
        with tempfile.TemporaryDirectory() as folder:
            saved: Path | None = None
            for ratio in ratios:
                for name in methods:
                    pruned = copy.deepcopy(model)
                    source_of = (
                        {"statistics": saved} if saved else {"save_statistics": Path(folder) / "saved"}
                    )
                    options = dict(METHODS[name].settings) | {"ratio": ratio}
                    report = prune(pruned, None, calibration=read, settings=common, **source_of, **options)
                    saved = Path(folder) / "saved"
                    case = {
                        "model": source.name,
                        "parameters": count_parameters(model),
                        "dtype": dtype,
                        "calibration": calibration_entry(calibration, read.n_tokens),
                        "method": name,
                        "settings": report.settings,
                        "widths": sorted({len(layer.kept) for layer in report.layers}),
                        "windows": n_windows,
                        "seed": seed,
                    }
                    result = outcome(pruned, dense, windows, {"calibration": spent} | report.seconds)
                    again = command(
                        "benchmarks.quality.texts",
                        data="DIR",
                        model=f"{source.name}=...",
                        calibrations=calibration,
                        methods=name,
                        ratios=ratio,
                        tokens=tokens,
                        windows=n_windows,
                        dtype=dtype,
                        device=source.device,
                        seed=seed,
                    )
                    append([row("quality.texts", again, case, result, device=source.device)], out)
                    summary = result["pruned"]
                    shown = {text: entry["ratio"] for text, entry in summary["texts"].items()}
                    print(calibration, name, ratio, shown, summary["mean"], summary["worst"], flush=True)


def main() -> int:
    parser = argument_parser("benchmarks.quality.texts", __doc__, "texts.jsonl")
    add_sources(parser)
    parser.set_defaults(windows=16)
    parser.add_argument("--calibrations", nargs="+", default=["self,builtin", "builtin"], metavar="SOURCES")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", default=["conditional-mi, sequential"]
    )
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2])
    parser.add_argument("--tokens", type=int, default=Settings().calibration_tokens, help="of calibration")
    parser.add_argument("--dtype", default="float32", help="to compute in")
    args = parser.parse_args()
    models = sources(args)
    for model in models:
        measure(
            model,
            args.data,
            args.calibrations,
            args.methods,
            args.ratios,
            tokens=args.tokens,
            n_windows=args.windows,
            dtype=args.dtype,
            seed=args.seed,
            out=args.out,
        )
    return 0 if models else 1


if __name__ == "__main__":
    sys.exit(main())
