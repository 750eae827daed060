"""`mi-prune`: prune a model from the command line and show the cost in quality."""

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from pruning.model.loading import load_model
from pruning.model.output_folder import check_output
from pruning.model.precision import computing_dtype, set_dtypes, weight_dtypes
from pruning.model.reload import reload_difference
from pruning.model.size import weight_bytes
from pruning.model.snapshot import take_snapshot
from pruning.observe.batches import Windows
from pruning.observe.calibration import text_windows
from pruning.observe.sources import BUILTIN, open_sources
from pruning.pipeline import prune
from pruning.prepare import prepare
from pruning.report.comparison import closing_table, evaluate, summary
from pruning.report.save import save_pruned
from pruning.report.speed import paired_speed
from pruning.settings import Settings, choices, help_text

RELOAD_TOLERANCE = 0.02
"""Of the largest output: a few roundings of bfloat16 (0.004 each), which may differ between processes."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 on success, or 1 after printing a message to standard error."""
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
    start = time.perf_counter()
    # Find every error in the input before the first long step.
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    if args.statistics is not None and not Path(args.statistics).is_file():
        raise FileNotFoundError(f"{args.statistics}: no such statistics file")
    calibration = open_sources(args.calibration or [BUILTIN])
    evaluation = open_sources(args.evaluate, builtin_half=1) if args.evaluate else None
    out = Path(args.out)
    texts = [source.name for source, _ in (*calibration, *(evaluation or ()))]
    for source in (args.model, *texts):
        if Path(source).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"--out: expected a folder that does not contain the input {source}, got {out}")
    check_output(out, force=args.force)

    model, tokenizer = load_model(
        args.model,
        dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    # Weights that are not pruned come back bit for bit, since the dtype to compute in holds every stored value.
    stored, stored_dtypes, dense_bytes = model.dtype, weight_dtypes(model), weight_bytes(model)
    computing = computing_dtype(stored, model.device.type) if args.dtype == "auto" else stored
    if computing != stored:
        set_dtypes(model, {}, computing)
    ffns, calibration_windows, settings, _left = prepare(model, tokenizer, calibration, settings)
    print(
        f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')} on {model.device}: {len(ffns)} FFNs "
        f"of {ffns[0].width} neurons; keeping {1 - settings.ratio:.0%} of them"
    )
    check_output(out, needed_bytes=weight_bytes(model), force=args.force)
    windows: Windows | None = None
    if evaluation is not None:
        windows = text_windows(model, tokenizer, evaluation, settings, n_tokens=args.evaluation_tokens)

    progress = not args.quiet
    conditions = {"prompt": args.prompt, "batch_size": settings.batch_size, "progress": progress}
    dense = evaluate(model, tokenizer, windows, name="dense", **conditions)
    # Keeps the dense weights of the FFNs in memory until the speed is measured.
    dense_weights = take_snapshot(ffns) if windows is not None else []
    report = prune(
        model,
        tokenizer,
        calibration=calibration_windows,
        statistics=args.statistics,
        save_statistics=args.save_statistics,
        settings=settings,
        progress=progress,
    )
    if computing != stored:  # evaluate the values that will be saved
        set_dtypes(model, stored_dtypes, stored)
        set_dtypes(model, {}, computing)
    pruned = evaluate(model, tokenizer, windows, name="pruned", **conditions)
    speed = paired_speed(model, ffns, dense_weights, windows.rectangle()) if windows is not None else None
    del dense_weights
    if computing != stored:
        set_dtypes(model, stored_dtypes, stored)
    dense = dense._replace(weight_bytes=dense_bytes)
    pruned = pruned._replace(weight_bytes=weight_bytes(model))

    report.notes |= {"model": args.model}
    if windows is not None and speed is not None:
        shape = {"windows": len(windows), "sequence_length": settings.sequence_length}
        report.notes["evaluation"] = {"text": windows.source} | shape | summary(dense, pruned, speed)
    save_pruned(model, tokenizer, report, out, force=args.force)

    print("\n" + closing_table(report, dense, pruned, speed))
    if windows is not None:
        print(
            f"Conditions: {len(windows)} windows of {settings.sequence_length} tokens of {windows.source}, "
            f"calibrated on {report.calibration_tokens} tokens of "
            f"{report.notes.get('calibration_text', args.statistics)}; {settings.criterion}, "
            f"{settings.repair} repair, {settings.budget} budget, seed {settings.seed}."
        )
    for name, sentence in (("dense", dense.sentence), ("pruned", pruned.sentence)):
        if sentence is not None:
            print(f"\n[{name}] {args.prompt} {sentence}")
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in report.seconds.items())
    names = [str(dtype).removeprefix("torch.") for dtype in (stored, computing)]
    precision = names[0] if stored == computing else f"{names[0]}, computed in {names[1]}"
    print(f"\nSaved to {out} in {precision}. {time.perf_counter() - start:.0f} s in total: {stages}.")
    if args.verify:
        compared = windows or calibration_windows
        assert compared is not None  # noqa: S101, prepare reads them
        ids = compared.rectangle()[:1]
        difference = reload_difference(model, out, ids)
        loader = "plain transformers" if settings.budget == "uniform" else "pruning.load_model"
        print(
            f"Reloaded with {loader} in a fresh process: outputs differ by at most {difference:.3g} of the largest."
        )
        if not difference <= RELOAD_TOLERANCE:  # also if it is NaN
            raise RuntimeError(
                f"{out}: expected the reloaded model to give the outputs of the model in memory, got a difference of "
                f"{difference:.3g} of the largest output"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mi-prune",
        description="Drop the redundant neurons of a language model's feed-forward layers, without retraining.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "model", help="folder (safetensors), .gguf file, or name of a model on the Hugging Face hub"
    )
    parser.add_argument(
        "--out", required=True, help="folder for the pruned model; it appears only when complete"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier result in the output folder")
    parser.add_argument(
        "--calibration",
        metavar="TEXT[=WEIGHT]",
        action="append",
        help="text to calibrate on: a UTF-8 file of text, .jsonl (text or messages), .parquet, or "
        "NAME[:CONFIG[:SPLIT]] "
        "of a data set on the Hugging Face hub; several by repeating the option, with weights for their shares of the "
        f"tokens; by default {BUILTIN}, half of CPython's language reference",
    )
    parser.add_argument(
        "--save-statistics",
        metavar="FILE",
        help="save what was measured, for later runs with other ratios, criteria or budgets",
    )
    parser.add_argument(
        "--statistics", metavar="FILE", help="reuse what --save-statistics saved instead of measuring again"
    )
    parser.add_argument(
        "--evaluate",
        metavar="TEXT[=WEIGHT]",
        action="append",
        help="text, as for --calibration, to compare the dense and the pruned model on, in quality and speed "
        f"(which keeps the dense FFN weights in memory); {BUILTIN} is the other half of the language reference",
    )
    parser.add_argument("--evaluation-tokens", type=int, default=8192, help="tokens to evaluate on")
    parser.add_argument("--prompt", help="show how the dense and the pruned model continue this text")
    parser.add_argument(
        "--verify", action="store_true", help="reload the result in a fresh process and compare the outputs"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="of the weights, to compute in and to save; auto is the stored one, computed in float32 where a CPU is "
        "slow with 16 bits",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; by default a GPU if there is one")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow code that comes with the model"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    for option in fields(Settings):
        flag = "--" + option.name.replace("_", "-")
        if isinstance(option.default, bool):
            parser.add_argument(
                flag.replace("--", "--no-") if option.default else flag,
                dest=option.name,
                action="store_false" if option.default else "store_true",
                default=option.default,
                help=help_text(option.name),
            )
            continue
        parser.add_argument(
            flag,
            type=type(option.default) if option.default is not None else _number_or_text,
            default=option.default,
            choices=choices(option.name) or None,
            help=help_text(option.name),
        )
    return parser


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # `Settings` checks it


if __name__ == "__main__":
    sys.exit(main())
