"""`mi-prune`: prune a model from the command line and show what it cost."""

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args

import torch
from transformers.utils import logging as transformers_logging

from mikernels.options import Estimator
from pruning.choose.budget import Budget
from pruning.model.checkpoint import check_output, load_model, reload_difference, save_pruned
from pruning.model.surgery import weight_bytes
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.pipeline import prepare, prune
from pruning.repair.closed_form import Repair
from pruning.report.comparison import closing_table, measure, summary
from pruning.settings import Criterion, Settings

BUILTIN = "builtin"
RELOAD_TOLERANCE = 0.02
"""Of the largest output: a few roundings of bfloat16, 0.004 each, which may differ between processes."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 where it did what was asked, 1 with a message on standard error where it could not."""
    args = _parser().parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        _run(args)
    except KeyboardInterrupt:
        print("mi-prune: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"mi-prune: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    # All that can be wrong is found out before the first long step.
    start = time.perf_counter()
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    if args.statistics is not None and not Path(args.statistics).is_file():
        raise FileNotFoundError(f"{args.statistics}: no such file of statistics")
    calibration = builtin_text()[0] if args.calibration == BUILTIN else read_text(args.calibration)
    evaluation = None
    if args.evaluate is not None:
        evaluation = builtin_text()[1] if args.evaluate == BUILTIN else read_text(args.evaluate)
    out = Path(args.out)
    for used in (args.model, args.calibration, args.evaluate):
        if used is not None and Path(used).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"--out: expected a folder that does not hold the input {used}, got {out}")
    check_output(out, force=args.force)

    model, tokenizer = load_model(
        args.model,
        dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    ffns, calibration_windows = prepare(model, tokenizer, calibration, settings)
    print(
        f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')} on {model.device}: {len(ffns)} FFNs "
        f"of {ffns[0].width} neurons, of which {1 - settings.ratio:.0%} stay"
    )
    check_output(out, needed_bytes=weight_bytes(model), force=args.force)
    windows = None
    if evaluation is not None:
        limit = max(1, args.evaluation_tokens // settings.sequence_length)
        whole = not model.can_generate()
        windows = token_windows(tokenizer, evaluation, settings.sequence_length, limit=limit, whole=whole)

    progress = not args.quiet
    shown = {"prompt": args.prompt, "batch_size": settings.batch_size, "progress": progress}
    dense = measure(model, tokenizer, windows, name="dense", **shown)
    report = prune(
        model,
        tokenizer,
        calibration=calibration_windows,
        statistics=args.statistics,
        save_statistics=args.save_statistics,
        settings=settings,
        progress=progress,
    )
    pruned = measure(model, tokenizer, windows, name="pruned", **shown)

    report.notes |= {"model": args.model, "calibration_text": args.calibration}
    if windows is not None:
        conditions = {"text": args.evaluate, "windows": len(windows), "sequence_length": windows.shape[1]}
        report.notes["evaluation"] = conditions | summary(dense, pruned)
    save_pruned(model, tokenizer, report, out, force=args.force)

    print("\n" + closing_table(report, dense, pruned))
    if windows is not None:
        print(
            f"Conditions: {len(windows)} windows of {windows.shape[1]} tokens of {args.evaluate} text, calibrated on "
            f"{report.calibration_tokens} tokens of {args.calibration} text; {settings.criterion}, "
            f"{settings.repair} repair, {settings.budget} budget, seed {settings.seed}."
        )
    for name, sentence in (("dense", dense.sentence), ("pruned", pruned.sentence)):
        if sentence is not None:
            print(f"\n[{name}] {args.prompt} {sentence}")
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in report.seconds.items())
    print(f"\nSaved to {out}. {time.perf_counter() - start:.0f} s in all, of which {stages}.")
    if args.verify:
        ids = windows[:1] if windows is not None else torch.arange(2, 66)[None]
        difference = reload_difference(model, out, ids)
        loader = "plain transformers" if settings.budget == "uniform" else "pruning.load_model"
        print(
            f"Reloaded with {loader} in a fresh process: outputs differ by {difference:.3g} of the largest."
        )
        if not difference <= RELOAD_TOLERANCE:  # NaN too
            raise RuntimeError(f"{out}: expected the reloaded model to give the outputs of the one in memory")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mi-prune",
        description="Drop the redundant neurons of a language model's feed-forward layers, without retraining.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="folder (safetensors), .gguf file, or name on the Hugging Face hub")
    parser.add_argument(
        "--out", required=True, help="folder for the pruned model; appears only when complete"
    )
    parser.add_argument("--force", action="store_true", help="replace the model that is in the output folder")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        default=BUILTIN,
        help="UTF-8 text; half of CPython's language reference",
    )
    parser.add_argument(
        "--save-statistics",
        metavar="FILE",
        help="keep what was measured, for other ratios, criteria and budgets",
    )
    parser.add_argument(
        "--statistics",
        metavar="FILE",
        help="start from what --save-statistics kept",
    )
    parser.add_argument(
        "--evaluate",
        metavar="FILE",
        help=f"compare dense and pruned on this UTF-8 text; {BUILTIN} is the other half of that reference",
    )
    parser.add_argument("--evaluation-tokens", type=int, default=8192, help="how much of it to use")
    parser.add_argument("--prompt", help="show how the dense and the pruned model continue it")
    parser.add_argument(
        "--verify", action="store_true", help="reload the result in a fresh process and compare"
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_argument("--device", help="such as cpu or cuda:0; by default a GPU where there is one")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow code that comes with the model"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    choices = {
        "criterion": get_args(Criterion),
        "repair": get_args(Repair),
        "budget": get_args(Budget),
        "estimator": get_args(Estimator),
    }
    helps = {
        "ratio": "share of neurons to drop",
        "criterion": "what goes first",
        "repair": "what makes up for the dropped neurons",
        "refine": "after sequential repair of each layer, a short descent of all of its projections: "
        "slower, better, most of all with many tokens",
        "budget": "how many go from each layer: mi and kl spare sensitive ones, and stock transformers cannot load "
        "the result (pruning.load_model can)",
        "max_layer_ratio": "the most that a budget takes from one layer",
        "threshold": "Tr of random-pairs: nats, or null:0.999 for that quantile of independent neurons; "
        "each layer's median MI by default",
        "clusters": "of each layer's neurons, within which random-pairs seeks its pairs",
        "candidates": "selections that random-pairs draws, by seed, seed + 1, ...: the one is taken whose model stays "
        "closest to the dense one",
        "multiple_of": "round the width that stays to a multiple",
        "calibration_tokens": "tokens to calibrate on",
        "sequence_length": "tokens per window",
        "batch_size": "windows at a time",
        "sample_size": "tokens that the MI estimate uses",
        "estimator": "of the mutual information",
        "nodes": "per neuron, of the grid estimator",
        "seed": "of everything random",
    }
    for f in fields(Settings):
        flag = "--" + f.name.replace("_", "-")
        if isinstance(f.default, bool):
            parser.add_argument(flag, action="store_true", help=helps[f.name])
            continue
        parser.add_argument(
            flag,
            type=_threshold if f.name == "threshold" else type(f.default),
            default=f.default,
            choices=choices.get(f.name),
            help=helps[f.name],
        )
    return parser


def _threshold(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # `Settings` says whether it is a rule


if __name__ == "__main__":
    sys.exit(main())
