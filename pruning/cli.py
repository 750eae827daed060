"""`mi-prune`: prune a model from the command line and show the cost in quality."""

import argparse
import json
import sys
import time
import traceback
from dataclasses import fields, replace
from pathlib import Path

from transformers.utils import logging as transformers_logging

from mikernels.terminal import any_encoding, describe, discard_output, warnings_in_one_line
from pruning.arguments import parse
from pruning.choose.evidence_file import read_origin
from pruning.choose.origin import check_calibration_settings
from pruning.comparing import load, prune_and_compare, texts_of
from pruning.from_disk import prune_folder
from pruning.launch import Launch
from pruning.observe.calibration import Calibration
from pruning.observe.mixture import Weighted
from pruning.observe.sources import BUILTIN, open_sources
from pruning.paths import check_paths, check_report
from pruning.planning.plan import plan
from pruning.planning.plan_text import plan_text
from pruning.prepare import check_one_by_one
from pruning.report.comparison import refining_sentence
from pruning.report.manifest import plain_json
from pruning.settings import Settings
from pruning.sweeping import sweep, sweep_json, sweep_table
from pruning.terminal import Saved, times, write_page

REFUSED = {
    "plan": (("statistics",), "which plans for a run that measures the model; remove one of them"),
    "sweep": (
        ("out", "from_disk", "resume", "statistics", "save_statistics", "prompt", "verify"),
        "which has the whole model in memory and saves nothing",
    ),
    "from_disk": (
        ("evaluate", "prompt", "verify", "statistics", "save_statistics"),
        "which never loads the whole model",
    ),
}
"""For options that choose what is done, those that cannot go with them, and why."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 on success, 1 after printing an error in one line to standard error, 130 if
    interrupted."""
    with any_encoding():
        args = parse(argv)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        saved, launch = Saved(args.save_statistics), Launch()
        try:
            with (
                warnings_in_one_line("mi-prune", quiet=args.quiet or not launch.is_first) as warned,
                launch.joined(args.device) as device,
            ):
                _run(args, saved, warned, launch, device)
            sys.stdout.flush()
        except KeyboardInterrupt:
            if launch.may_speak():
                print(f"mi-prune: interrupted{saved}", file=sys.stderr)
            return 130
        except Exception as error:
            if args.debug:
                traceback.print_exc()
            if isinstance(error, BrokenPipeError):
                discard_output()
            if launch.may_speak():
                print(f"mi-prune: {describe(error)}{saved}", file=sys.stderr, flush=True)
            return 1
    return 0


def _run(args: argparse.Namespace, saved: Saved, warned: list[str], launch: Launch, device: str) -> None:
    """Find every error in the arguments and in what they name, before a model is loaded; then run what is asked for."""
    options = {f.name: getattr(args, f.name) for f in fields(Settings)}
    if args.num_samples is not None:
        if args.num_samples < 1:
            raise ValueError(f"--num-samples: expected a positive integer, got {args.num_samples}")
        options["calibration_tokens"] = args.num_samples * args.sequence_length
    settings = Settings(**options)
    if args.evaluation_tokens is not None and args.evaluation_tokens < 1:
        raise ValueError(f"--evaluation-tokens: expected a positive integer, got {args.evaluation_tokens}")
    calibration = open_sources(args.calibration) if args.calibration else None
    evaluation = open_sources(args.evaluate or (), builtin_half=1)
    named = [source.name for source, _ in evaluation]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"--evaluate: expected each text once, got {twice[0]} several times")
    inputs = {"the model": args.model}
    for option, sources in (("--calibration", calibration), ("--evaluate", evaluation)):
        for source, _ in sources or ():
            inputs[f"{option} {source.name}"] = source.name
    if launch.group is not None and (args.plan or args.sweep is not None):
        option = "--plan" if args.plan else "--sweep"
        raise ValueError(f"{option}: expected one process, got several; start it without torchrun")
    for mode, (others, reason) in REFUSED.items():
        for option in others:
            if getattr(args, mode) and getattr(args, option):
                raise ValueError(f"{_flag(option)}: expected none with {_flag(mode)}, {reason}")
    if args.resume and not args.from_disk:
        raise ValueError("--resume: expected --from-disk with it, got none")
    if args.evaluation_tokens is not None and not args.evaluate and not args.sweep:
        raise ValueError("--evaluation-tokens: expected --evaluate or --sweep with it, got none")
    if args.plan:
        _plan(args, settings, inputs, device)
        return
    if args.sweep is not None:
        _sweep(args, settings, calibration, evaluation, inputs, device)
        return
    targets = {name: getattr(args, name) for name in ("statistics", "save_statistics", "report")}
    check_paths(Path(args.out), inputs, **targets, force=args.force)
    if args.statistics is not None:
        check_calibration_settings(settings, read_origin(args.statistics).calibration, args.statistics)
    if args.from_disk:
        _prune_from_disk(args, settings, calibration, saved, warned, launch, device)
    else:
        prune_and_compare(args, settings, calibration, evaluation, saved, warned, launch, device)


def _plan(args: argparse.Namespace, settings: Settings, inputs: dict[str, str], device: str) -> None:
    """Show what a run would take, and run nothing.

    Raises:
        ValueError: an option that the run would refuse before it runs the model, see `plan`; or the run does not fit,
            and the plan is shown all the same.
    """
    if args.report is not None:
        check_report(args.report, inputs)
    if args.from_disk:
        check_one_by_one(settings, "pruned from disk")
    found = plan(
        args.model,
        settings=settings,
        from_disk=args.from_disk,
        save_statistics=args.save_statistics is not None,
        out=args.out or ".",
        dtype=args.dtype,
        device=device,
        trust_remote_code=args.trust_remote_code,
    )
    print(json.dumps(plain_json(found.as_json()), indent=1) if args.json else plan_text(found))
    found.check()


def _sweep(
    args: argparse.Namespace,
    settings: Settings,
    calibration: Calibration,
    evaluation: Weighted,
    inputs: dict[str, str],
    device: str,
) -> None:
    """Show what several ratios give, and save nothing."""
    if args.report is not None:
        check_report(args.report, inputs)
    model, tokenizer, _, stored_dtypes = load(args, device)
    other = replace(settings, seed=settings.seed ^ 1)
    evaluation = evaluation or open_sources([BUILTIN], builtin_half=1)
    texts = texts_of(model, tokenizer, evaluation, other, args.evaluation_tokens, progress=not args.quiet)
    found = sweep(
        model,
        tokenizer,
        args.sweep,
        calibration=calibration,
        texts=texts,
        settings=settings,
        saved=stored_dtypes,
        progress=not args.quiet,
    )
    print(sweep_json(found) if args.json else sweep_table(found))
    write_page(args, found)


def _prune_from_disk(
    args: argparse.Namespace,
    settings: Settings,
    calibration: Calibration,
    saved: Saved,
    warned: list[str],
    launch: Launch,
    device: str,
) -> None:
    """Prune with one layer in memory at a time."""
    start = time.perf_counter()
    report = prune_folder(
        args.model,
        args.out,
        calibration=calibration,
        settings=settings,
        dtype=args.dtype,
        device=device,
        trust_remote_code=args.trust_remote_code,
        force=args.force,
        resume=args.resume,
        process_group=launch.group,
        progress=launch.is_first and not args.quiet,
        notes={"command": args.command, "warnings": warned},
    )
    if not launch.is_first:
        return
    saved.out = Path(args.out)
    print(
        f"Kept {report.neurons_after:,} of {report.neurons_before:,} neurons. Saved to {args.out}. "
        f"{times(report, start)}"
    )
    if settings.refine:
        print(refining_sentence(report.layers))
    write_page(args)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
