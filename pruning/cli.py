"""`mi-prune`: prune a model from the command line and show the cost in quality."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mikernels.terminal import any_encoding, describe, discard_output, warnings_in_one_line
from pruning.arguments import parse
from pruning.choose.evidence_file import check_evidence, ffn_names
from pruning.choose.origin import estimator_name, model_fingerprint
from pruning.choose.target import pruned_size
from pruning.from_disk import prune_folder
from pruning.launch import Launch
from pruning.model.loading import load_model
from pruning.model.output_folder import check_output
from pruning.model.precision import Dtypes, computing_dtype, round_weights, set_dtypes, weight_dtypes
from pruning.model.reload import reload_difference
from pruning.model.size import weight_bytes
from pruning.model.snapshot import take_snapshot
from pruning.model.uneven import is_uneven
from pruning.observe.batches import Windows
from pruning.observe.calibration import Calibration
from pruning.observe.mixture import Weighted, has_samples, text_inputs, text_windows
from pruning.observe.sources import BUILTIN, builtin, open_sources
from pruning.paths import check_paths, check_report, is_same_file
from pruning.pipeline import prune
from pruning.planning.plan import plan
from pruning.planning.plan_text import plan_text
from pruning.prepare import calibration_or_default, check_one_by_one, prepare
from pruning.report.companions import source_folder
from pruning.report.comparison import closing_table, evaluate, refining_sentence, summary
from pruning.report.coverage import coverage
from pruning.report.dry_save import dry_save
from pruning.report.manifest import Report, plain_json
from pruning.report.page import write_html
from pruning.report.quality import check_prompt
from pruning.report.save import save_pruned
from pruning.report.speed import paired_speed
from pruning.settings import Settings
from pruning.sweeping import Swept, sweep, sweep_json, sweep_table
from pruning.terminal import Saved

RELOAD_TOLERANCE = 0.02
"""Of the largest output: a few roundings of bfloat16 (0.004 each), which may differ between processes."""


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
    start = time.perf_counter()
    # Find every error in the input before the first long step.
    options = {f.name: getattr(args, f.name) for f in fields(Settings)}
    if args.num_samples is not None:
        if args.num_samples < 1:
            raise ValueError(f"--num-samples: expected a positive integer, got {args.num_samples}")
        options["calibration_tokens"] = args.num_samples * args.sequence_length
    settings = Settings(**options)
    if args.evaluation_tokens < 1:
        raise ValueError(f"--evaluation-tokens: expected a positive integer, got {args.evaluation_tokens}")
    calibration = open_sources(args.calibration) if args.calibration else None
    evaluation = open_sources(args.evaluate or (), builtin_half=1)
    read_from = [source.name for source, _ in calibration or ()]
    inputs = {"the model": args.model}
    for option, sources in (("--calibration", calibration), ("--evaluate", evaluation)):
        for source, _ in sources or ():
            inputs[f"{option} {source.name}"] = source.name
    if launch.group is not None and (args.plan or args.sweep is not None):
        option = "--plan" if args.plan else "--sweep"
        raise ValueError(f"{option}: expected one process, got several; start it without torchrun")
    if args.resume and not args.from_disk and args.sweep is None:
        raise ValueError("--resume: expected --from-disk with it, got none")
    if args.plan:
        _plan(args, settings, inputs, device)
        return
    if args.sweep is not None:
        _sweep(args, settings, calibration, evaluation, inputs, device)
        return
    out = Path(args.out)
    targets = {name: getattr(args, name) for name in ("statistics", "save_statistics", "report")}
    check_paths(out, inputs, **targets, force=args.force)

    if args.from_disk:
        report = _prune_from_disk(args, settings, calibration, warned, launch, device)
        if not launch.is_first:
            return
        saved.out = out
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in report.seconds.items())
        print(
            f"Kept {report.neurons_after:,} of {report.neurons_before:,} neurons. Saved to {out}. "
            f"{time.perf_counter() - start:.0f} s in total: {stages}."
        )
        if settings.refine:
            print(refining_sentence(report.layers))
        _write_report(args)
        return
    model, tokenizer, stored, stored_dtypes = _load(args, device)
    computing = model.dtype
    measured = None if args.statistics is None else ffn_names(args.statistics)
    # Statistics bring the tokens that they were measured on; with least squares none are needed.
    if calibration is not None or args.statistics is None or settings.repair != "lstsq":
        calibration = calibration_or_default(calibration, args.statistics, model, tokenizer)
    ffns, read, chosen, left, n_ffns, _ = prepare(
        model,
        tokenizer,
        calibration,
        settings,
        need_windows=calibration is not None,
        measured=measured,
        saved=stored_dtypes,
    )
    # A target in bytes is one of the stored dtypes, which the model does not have while it computes.
    settings = replace(settings, ratio=chosen.ratio, target_params=None, target_bytes=None)
    if args.statistics is not None:
        estimator = estimator_name(settings.estimator, settings.nodes)
        check_evidence(args.statistics, ffns, estimator=estimator, model=model_fingerprint(model))
    dry_save(model, tokenizer)
    if args.prompt is not None:
        check_prompt(args.prompt, model, tokenizer)
    if launch.is_first and not args.quiet:
        print(
            f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')} on {model.device}: "
            f"{coverage([ffn.width for ffn in ffns], n_ffns, left)}; keeping {1 - settings.ratio:.0%} of their neurons"
        )
    dense_bytes = pruned_size(model, ffns, None, settings, stored_dtypes).bytes
    check_output(out, needed_bytes=dense_bytes, force=args.force)
    progress = launch.is_first and not args.quiet
    # Own samples that the model is not calibrated on; `^`, because the largest seed has no next one.
    other = replace(settings, seed=settings.seed ^ 1)
    texts, prompt = {}, None
    if launch.is_first:
        prompt = args.prompt
        texts = _texts(model, tokenizer, evaluation, other, args.evaluation_tokens, progress=progress)
    conditions: Any = {"prompt": prompt, "batch_size": settings.batch_size, "progress": progress}
    dense = evaluate(model, tokenizer, texts, name="dense", **conditions)
    # Keeps the dense weights of the FFNs in memory until the speed is measured.
    dense_weights = take_snapshot(ffns) if texts else None
    report = prune(
        model,
        tokenizer,
        calibration=calibration if has_samples(calibration) else read,
        statistics=args.statistics,
        save_statistics=args.save_statistics,
        settings=settings,
        process_group=launch.group,
        progress=progress,
    )
    if not launch.is_first:
        return
    if computing != stored:  # evaluate the values that will be saved
        round_weights(model, stored_dtypes, stored)
    pruned = evaluate(model, tokenizer, texts, name="pruned", **conditions)
    compared = next(iter(texts.values())).rectangle() if texts else None
    speed = None
    if dense_weights is not None and compared is not None:
        speed = paired_speed(model, ffns, dense_weights, compared)
    del dense_weights
    if computing != stored:
        set_dtypes(model, stored_dtypes, stored)
    dense = dense._replace(weight_bytes=dense_bytes)
    pruned = pruned._replace(weight_bytes=weight_bytes(model))

    report.notes |= {"model": args.model, "command": args.command}
    report.notes["weight_bytes"] = {"before": dense_bytes, "after": pruned.weight_bytes}
    for name in ("target_params", "target_bytes"):
        if (target := getattr(args, name)) is not None:
            report.settings[name] = target
    # Also from a statistics file; the names are joined as in `text_windows`.
    named = f", {report.notes['calibration'].get('source', '')}, "
    calibrated_on = {
        text
        for text in texts
        if f", {text}, " in named
        or f", {text}=" in named
        or any(is_same_file(text, name) for name in read_from)
    }
    if speed is not None:
        report.notes["evaluation"] = summary(texts, dense, pruned, speed, calibrated_on)
    if warned:
        report.notes["warnings"] = list(warned)
    save_pruned(model, tokenizer, report, out, source=source_folder(args.model), force=args.force)
    saved.out = out

    print("\n" + closing_table(report, dense, pruned, speed, calibrated_on))
    if texts:
        evaluated = ", ".join(f"{len(windows)} of {text}" for text, windows in texts.items())
        print(
            f"Conditions: windows of {settings.sequence_length} tokens, {evaluated}; "
            f"calibrated on {report.calibration_tokens} tokens of "
            f"{report.notes['calibration'].get('source', args.statistics)}; {settings.criterion}, "
            f"{report.settings['repair']} repair, {settings.budget} budget, seed {settings.seed}."
        )
    if settings.refine:
        print(refining_sentence(report.layers))
    for name, sentence in (("dense", dense.sentence), ("pruned", pruned.sentence)):
        if sentence is not None:
            print(f"\n[{name}] {args.prompt} {sentence}")
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in report.seconds.items())
    names = [str(dtype).removeprefix("torch.") for dtype in (stored, computing)]
    precision = names[0] if stored == computing else f"{names[0]}, computed in {names[1]}"
    print(f"\nSaved to {out} in {precision}. {time.perf_counter() - start:.0f} s in total: {stages}.")
    _write_report(args)
    if args.verify:
        if compared is None:
            n_tokens = settings.sequence_length
            compared = text_windows(
                model, tokenizer, [(builtin(), 1.0)], other, n_tokens=n_tokens
            ).rectangle()
        difference = reload_difference(model, out, text_inputs(model, compared[:1]))
        loader = "pruning.load_model" if is_uneven(model.config) else "plain transformers"
        print(
            f"Reloaded with {loader} in a fresh process: outputs differ by at most {difference:.3g} of the largest."
        )
        if not difference <= RELOAD_TOLERANCE:  # also if it is NaN
            raise RuntimeError(
                f"{out}: expected the reloaded model to give the outputs of the model in memory, got a difference of "
                f"{difference:.3g} of the largest output"
            )


def _write_report(args: argparse.Namespace, sweep: Sequence[Swept] = ()) -> None:
    """Write the page of the result, or of a sweep, if there is to be one, and say where."""
    if args.report is not None:
        write_html([] if sweep else args.out, args.report, sweep=sweep)
        print(f"Report: {args.report}", file=sys.stderr if args.json else sys.stdout)


def _load(
    args: argparse.Namespace, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, torch.dtype, Dtypes]:
    """The model in the dtype to compute in, its tokenizer, and the stored dtype of most and of all weights.

    Weights that are not pruned come back bit for bit, since the dtype to compute in holds every stored value.
    """
    model, tokenizer = load_model(
        args.model,
        dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
        device=device,
        trust_remote_code=args.trust_remote_code,
    )
    stored, stored_dtypes = model.dtype, weight_dtypes(model)
    if args.dtype == "auto" and (computing := computing_dtype(stored, model.device.type)) != stored:
        set_dtypes(model, {}, computing)
    return model, tokenizer, stored, stored_dtypes


def _texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Weighted,
    settings: Settings,
    n_tokens: int,
    *,
    progress: bool,
) -> dict[str, Windows]:
    """The windows to evaluate on, by the name of the text."""
    total = sum(weight for _, weight in evaluation)
    return {
        source.name: text_windows(
            model,
            tokenizer,
            [(source, 1.0)],
            settings,
            n_tokens=int(n_tokens * weight / total),
            progress=progress,
        )
        for source, weight in evaluation
    }


def _plan(args: argparse.Namespace, settings: Settings, inputs: dict[str, str], device: str) -> None:
    """Show what a run would take, and run nothing.

    Raises:
        ValueError: an option that the run would refuse; or it does not fit, and the plan is shown all the same.
    """
    if args.report is not None:
        check_report(args.report, inputs)
    if args.from_disk:
        _check_from_disk(args)
        check_one_by_one(settings, "pruned from disk")
    found = plan(
        args.model,
        settings=settings,
        from_disk=args.from_disk,
        save_statistics=args.save_statistics is not None,
        out=args.out or ".",
        dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
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
    """Show what several ratios give, and save nothing.

    Raises:
        ValueError: an option that saves something, or needs one result.
    """
    for option in ("out", "from_disk", "resume", "statistics", "save_statistics", "prompt", "verify"):
        if getattr(args, option):
            raise ValueError(
                f"--{option.replace('_', '-')}: expected none with --sweep, which has the whole model in memory and "
                f"saves nothing"
            )
    if args.report is not None:
        check_report(args.report, inputs)
    model, tokenizer, _, stored_dtypes = _load(args, device)
    other = replace(settings, seed=settings.seed ^ 1)
    evaluation = evaluation or open_sources([BUILTIN], builtin_half=1)
    texts = _texts(model, tokenizer, evaluation, other, args.evaluation_tokens, progress=not args.quiet)
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
    _write_report(args, found)


def _prune_from_disk(
    args: argparse.Namespace,
    settings: Settings,
    calibration: Calibration,
    warned: list[str],
    launch: Launch,
    device: str,
) -> Report:
    """Prune with one layer in memory at a time.

    Raises:
        ValueError: see `_check_from_disk`.
    """
    _check_from_disk(args)
    return prune_folder(
        args.model,
        args.out,
        calibration=calibration,
        settings=settings,
        dtype=None if args.dtype == "auto" else getattr(torch, args.dtype),
        device=device,
        trust_remote_code=args.trust_remote_code,
        force=args.force,
        resume=args.resume,
        process_group=launch.group,
        progress=launch.is_first and not args.quiet,
        notes={"command": args.command, "warnings": warned},
    )


def _check_from_disk(args: argparse.Namespace) -> None:
    """Raise ValueError for an option that needs the whole model."""
    for option in ("evaluate", "prompt", "verify", "statistics", "save_statistics"):
        if getattr(args, option):
            raise ValueError(
                f"--{option.replace('_', '-')}: expected none with --from-disk, which never loads the whole model"
            )


if __name__ == "__main__":
    sys.exit(main())
