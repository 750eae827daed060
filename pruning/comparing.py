"""What `mi-prune` does with a model that fits into memory: prune it, compare it with the dense one, save it."""

import argparse
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.arguments import EVALUATION_TOKENS
from pruning.choose.evidence_file import check_evidence, ffn_names
from pruning.choose.origin import estimator_name, model_fingerprint
from pruning.choose.target import kept_widths, pruned_size
from pruning.launch import Launch
from pruning.model.ffn import FFN
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
from pruning.observe.sources import builtin
from pruning.paths import is_same_file
from pruning.pipeline import prune
from pruning.prepare import calibration_or_default, prepare
from pruning.report.companions import source_folder
from pruning.report.comparison import closing_table, evaluate, refining_sentence, summary
from pruning.report.coverage import coverage
from pruning.report.dry_save import dry_save
from pruning.report.manifest import Report
from pruning.report.quality import check_prompt
from pruning.report.save import save_pruned
from pruning.report.speed import paired_speed
from pruning.settings import Settings
from pruning.terminal import Saved, times, write_page

RELOAD_TOLERANCE = 0.02
"""Of the largest output: a few roundings of bfloat16 (0.004 each), which may differ between processes."""


def prune_and_compare(
    args: argparse.Namespace,
    settings: Settings,
    calibration: Weighted | None,
    evaluation: Weighted,
    saved: Saved,
    warned: list[str],
    launch: Launch,
    device: str,
) -> None:
    """Prune the model, compare it with the dense one, save it, and show what came of it.

    Args:
        calibration, evaluation: what `--calibration` and `--evaluate` name.
        saved: is told what was saved.
        warned: warnings so far, which grow while it runs.

    Raises:
        ValueError, OSError: what cannot be pruned, or written, most of it before the first long step.
        RuntimeError: `--verify` finds another model in the folder than in memory.
    """
    start = time.perf_counter()
    model, tokenizer, stored, stored_dtypes = load(args, device)
    computing = model.dtype
    named = [source.name for source, _ in calibration or ()]
    ready = _prepare(args, settings, calibration, model, tokenizer, stored_dtypes, launch)
    settings, ffns = ready.settings, ready.ffns
    progress = launch.is_first and not args.quiet
    # Own samples that the model is not calibrated on; `^`, because the largest seed has no next one.
    other = replace(settings, seed=settings.seed ^ 1)
    texts, prompt = {}, None
    if launch.is_first:
        prompt = args.prompt
        texts = texts_of(model, tokenizer, evaluation, other, args.evaluation_tokens, progress=progress)
    conditions: Any = {"prompt": prompt, "batch_size": settings.batch_size, "progress": progress}
    dense = evaluate(model, tokenizer, texts, name="dense", **conditions)
    # Keeps the dense weights of the FFNs in memory until the speed is measured.
    dense_weights = take_snapshot(ffns) if texts else None
    report = prune(
        model,
        tokenizer,
        calibration=ready.calibration,
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
    dense = dense._replace(weight_bytes=ready.dense_bytes)
    pruned = pruned._replace(weight_bytes=weight_bytes(model))

    report.notes |= {"model": args.model, "command": args.command}
    report.notes["weight_bytes"] = {"before": dense.weight_bytes, "after": pruned.weight_bytes}
    for name in ("target_params", "target_bytes"):
        if (target := getattr(args, name)) is not None:
            report.settings[name] = target
    calibrated_on = _calibrated_on(texts, report, named)
    if speed is not None:
        report.notes["evaluation"] = summary(texts, dense, pruned, speed, calibrated_on)
    if warned:
        report.notes["warnings"] = list(warned)
    save_pruned(model, tokenizer, report, Path(args.out), source=source_folder(args.model), force=args.force)
    saved.out = Path(args.out)

    print("\n" + closing_table(report, dense, pruned, speed, calibrated_on))
    _print_conditions(args, settings, report, texts)
    for name, sentence in (("dense", dense.sentence), ("pruned", pruned.sentence)):
        if sentence is not None:
            print(f"\n[{name}] {args.prompt} {sentence}")
    names = [str(dtype).removeprefix("torch.") for dtype in (stored, computing)]
    precision = names[0] if stored == computing else f"{names[0]}, computed in {names[1]}"
    print(f"\nSaved to {args.out} in {precision}. {times(report, start)}")
    write_page(args)
    if args.verify:
        if compared is None:
            compared = text_windows(
                model, tokenizer, [(builtin(), 1.0)], other, n_tokens=settings.sequence_length
            ).rectangle()
        _verify(model, Path(args.out), text_inputs(model, compared[:1]))


class _Ready(NamedTuple):
    """What is known before the first long step.

    Attributes:
        settings: with the ratio that reaches a target.
        ffns: to prune.
        calibration: for `prune`: the windows, or their sources if the model writes some of them.
        dense_bytes: of the weights as they are stored.
    """

    settings: Settings
    ffns: list[FFN]
    calibration: Calibration
    dense_bytes: int


def _prepare(
    args: argparse.Namespace,
    settings: Settings,
    calibration: Calibration,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored_dtypes: Dtypes,
    launch: Launch,
) -> _Ready:
    """Check everything that needs the model and can be checked before the first long step, and say what will run."""
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
        kept, width = sum(kept_widths(ffns, settings.ratio, settings)), sum(ffn.width for ffn in ffns)
        print(
            f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')} on {model.device}: "
            f"{coverage([ffn.width for ffn in ffns], n_ffns, left)}; keeping {kept / width:.0%} of their neurons"
        )
    dense_bytes = pruned_size(model, ffns, None, settings, stored_dtypes).bytes
    check_output(Path(args.out), needed_bytes=dense_bytes, force=args.force)
    return _Ready(settings, ffns, calibration if has_samples(calibration) else read, dense_bytes)


def _calibrated_on(texts: Collection[str], report: Report, named: Sequence[str]) -> set[str]:
    """Those of the texts that the calibration read, also if it came from a statistics file.

    Args:
        named: what `--calibration` named.
    """
    source = str(report.notes["calibration"].get("source", ""))
    parts = source.split(", ")  # joined as in `text_windows`, perhaps with weights
    known = {*named, *parts, *(part.rpartition("=")[0] for part in parts)}
    return {text for text in texts if text in known or any(is_same_file(text, name) for name in known)}


def _print_conditions(
    args: argparse.Namespace, settings: Settings, report: Report, texts: Mapping[str, Windows]
) -> None:
    """The lines below the closing table."""
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


def _verify(model: PreTrainedModel, out: Path, inputs: Mapping[str, Tensor]) -> None:
    """Compare the outputs of the saved model, in a fresh process, with those of the model in memory.

    Raises:
        RuntimeError: they differ.
    """
    difference = reload_difference(model, out, inputs)
    loader = "pruning.load_model" if is_uneven(model.config) else "plain transformers"
    print(
        f"Reloaded with {loader} in a fresh process: outputs differ by at most {difference:.3g} of the largest."
    )
    if not difference <= RELOAD_TOLERANCE:  # also if it is NaN
        raise RuntimeError(
            f"{out}: expected the reloaded model to give the outputs of the model in memory, got a difference of "
            f"{difference:.3g} of the largest output"
        )


def load(
    args: argparse.Namespace, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, torch.dtype, Dtypes]:
    """The model in the dtype to compute in, its tokenizer, and the stored dtype of most and of all weights.

    Weights that are not pruned come back bit for bit as transformers loads them, since the dtype to compute in holds
    every value of theirs. Of a checkpoint in several dtypes transformers converts all weights to the one of most, but
    those that their class keeps in float32.
    """
    model, tokenizer = load_model(
        args.model, dtype=args.dtype, device=device, trust_remote_code=args.trust_remote_code
    )
    stored, stored_dtypes = model.dtype, weight_dtypes(model)
    if args.dtype is None and (computing := computing_dtype(stored, model.device.type)) != stored:
        set_dtypes(model, {}, computing)
    return model, tokenizer, stored, stored_dtypes


def texts_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Weighted,
    settings: Settings,
    n_tokens: int | None,
    *,
    progress: bool,
) -> dict[str, Windows]:
    """The windows to evaluate on, by the name of the text."""
    n_tokens = EVALUATION_TOKENS if n_tokens is None else n_tokens
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
