"""Pruning in one call: capture, measure, select, repair."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.isolation import isolated
from pruning.choose.evidence import gather_evidence, measure_ffn
from pruning.choose.evidence_file import ffn_names, has_divergence, load_evidence, read_origin, save_evidence
from pruning.choose.explain import PrunedLayer
from pruning.choose.origin import (
    Origin,
    calibration_identity,
    check_calibration,
    estimator_name,
    model_fingerprint,
)
from pruning.choose.selection import select
from pruning.choose.sensitivity import with_divergence
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN, find_ffns
from pruning.model.snapshot import restored_on_error
from pruning.model.surgery import update_config
from pruning.observe.batches import Batch
from pruning.observe.calibration import Calibration, calibration_windows, comparison_batches, has_samples
from pruning.observe.capture import Recorder, prepare_experts
from pruning.paths import check_statistics_target
from pruning.prepare import prepare, warn_of_few_tokens, warn_of_unmeasured
from pruning.progress import timed, track
from pruning.repair.separate import prune_separately
from pruning.repair.sequential import examples_in_sequence, prune_and_fit, repair_in_sequence
from pruning.report.manifest import Report
from pruning.settings import Settings


@isolated()
def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    calibration: Calibration = None,
    statistics: str | Path | None = None,
    save_statistics: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Drop the redundant neurons of every FFN of `model`, in place.

    Args:
        model: a Hugging Face model, de-quantized, in memory, whose config sets the widths of its FFNs
            (`pruning.model.knobs`).
        tokenizer: of the model; may be None if `calibration` is a tensor.
        calibration: what to run the model on. Text, of which about `calibration_tokens` are read, in windows of
            `sequence_length`: a str; a Path of text, JSON lines or Parquet; sources (`pruning.observe.sources`); a
            data set (of `datasets`) with a column `text` or `messages`. A list of texts, each a sequence of its own.
            Token ids, all of which are used: an integer tensor or NumPy array `[n, L]`, a list of sequences, a
            dict with `input_ids` and optionally `attention_mask` (a `BatchEncoding`), or an iterable of such dicts (a
            `DataLoader`). Padding does not count. Batches of other inputs by name, such as `pixel_values`, are used as
            they are. By default half of the language reference that ships with CPython.
        statistics: a file that an earlier run wrote to `save_statistics`, used instead of capturing and measuring. With
            `repair="lstsq"` the model then does not run at all, except to compare `candidates` and to measure what
            `budget="kl"` needs and the file lacks. They must be of this very model, and calibration that is given or
            needed as well must be the tokens that they were measured on.
        save_statistics: a file for the statistics, and for what `budget="kl"` measured, for later runs with other
            ratios, criteria and budgets; written before anything is selected.
        settings, options: the options, as an instance of `pruning.Settings`, which documents them, or one by one as
            keywords, which override it.
        progress: show a progress bar for each stage.

    Memory beyond the model, on the device of its weights: for each layer N^2 x 8 bytes of moments and mutual
    information and `sample_size` x N activations; with sequential repair the hidden states of all tokens twice, and for
    one layer its neurons and what bypasses them. Sequential repair under the uniform budget completes each layer before
    the next one is captured; with any other settings, or `save_statistics`, all layers are in memory at once.

    Returns:
        What was dropped and why. The model's config describes the pruned model: `model.save_pretrained` gives a
        checkpoint that stock transformers can load (with `budget="uniform"`).

    Raises:
        ValueError: settings out of range, no config entry that sets the width of FFNs, an FFN whose neurons depend on
            each other, layers that cannot be followed (with `repair="sequential"`), too little text, a ratio that
            rounding or the cap makes unreachable, statistics of another model, calibration or estimator, NaN or
            infinite activations. The model is then unchanged.
        OSError: no such statistics file, or no folder to save one in, or other data in its place.
    """
    settings = replace(settings or Settings(), **options)  # type: ignore[arg-type]  # checked there
    origin = Origin(estimator_name(settings.estimator, settings.nodes), "")
    if save_statistics is not None:
        check_statistics_target(save_statistics)
    if statistics is not None or save_statistics is not None:
        find_ffns(model)  # raises before the model is read
        origin = replace(origin, model=model_fingerprint(model))
    lacks_divergence = settings.budget == "kl" and (statistics is None or not has_divergence(statistics))
    need_windows = (
        statistics is None
        or calibration is not None
        or settings.repair in ("auto", "sequential")
        or settings.candidates > 1
        or lacks_divergence
    )
    ffns, windows, settings, left, n_ffns = prepare(
        model,
        tokenizer,
        calibration,
        settings,
        need_windows=need_windows,
        measured=None if statistics is None else ffn_names(statistics),
    )
    evidence = None
    if statistics is not None:
        evidence = load_evidence(statistics, ffns, estimator=origin.estimator, model=origin.model)
        origin = read_origin(statistics)
    seconds: dict[str, float] = {}
    if windows is not None and has_samples(calibration):  # others stood in for them until here
        with timed(seconds, "sample"):
            windows = calibration_windows(model, tokenizer, calibration, settings, progress=progress)
    batches = windows.split(settings.batch_size) if windows is not None else ()
    comparison = comparison_batches(windows, settings.batch_size) if windows is not None else ()
    if windows is not None:
        identity = calibration_identity(windows, settings)
        if statistics is not None:
            check_calibration(identity, origin.calibration, str(statistics))
        origin = replace(origin, calibration=origin.calibration or identity)
    notes: dict[str, Any] = {"calibration": origin.calibration}
    notes["ffns"] = {"pruned": len(ffns), "of": n_ffns, "left": left}
    if statistics is not None:
        notes["calibration"] = origin.calibration | {"statistics": str(statistics)}
    if evidence is None and save_statistics is None and _layers_are_independent(settings):
        n_tokens = windows.n_tokens if windows is not None else 0
        warn_of_few_tokens(n_tokens, ffns, settings)
        layers = _prune_layer_by_layer(model, ffns, batches, settings, seconds, progress=progress)
        update_config(model, ffns)
        warn_of_unmeasured(layers)
        return Report(asdict(settings), n_tokens, layers, seconds, notes=notes)
    if evidence is None:
        evidence = gather_evidence(model, ffns, batches, settings, seconds=seconds, progress=progress)
    if save_statistics is not None:
        save_evidence(evidence, save_statistics, origin)
    if lacks_divergence:
        with timed(seconds, "sensitivity"):
            evidence = with_divergence(model, ffns, evidence, comparison)
        if save_statistics is not None:
            save_evidence(evidence, save_statistics, origin)
    n_tokens = max(layer.statistics.n_tokens for layer in evidence)
    warn_of_few_tokens(n_tokens, ffns, settings)
    with timed(seconds, "select"):
        layers, divergence = select(model, ffns, evidence, comparison, settings, progress=progress)
    with timed(seconds, "repair"):
        kept = track([layer.kept for layer in layers], "repair", show=progress)
        if settings.repair == "sequential":
            del evidence  # as large as the hidden states that repair needs
            repair_in_sequence(model, ffns, kept, batches, refine=settings.refine, seed=settings.seed)
        else:
            prune_separately(ffns, kept, [layer.statistics for layer in evidence], settings.repair)
    update_config(model, ffns)
    warn_of_unmeasured(layers)
    return Report(asdict(settings), n_tokens, layers, seconds, divergence, notes)


def _layers_are_independent(settings: Settings) -> bool:
    """Whether each layer can be completed in turn, because its selection does not depend on other layers."""
    return settings.repair == "sequential" and settings.budget == "uniform" and settings.candidates == 1


def _prune_layer_by_layer(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Batch],
    settings: Settings,
    seconds: dict[str, float],
    *,
    progress: bool,
) -> list[PrunedLayer]:
    """Capture, measure, select and repair one layer after the other.

    Only one layer's statistics are in memory at a time, and the dense stream of the sequential repair is the only
    forward pass.
    """
    layers: list[PrunedLayer] = []
    with restored_on_error(ffns), evaluation_mode(model):
        recorders: dict[FFN, Recorder] = {}
        sequence = examples_in_sequence(
            model, ffns, batches, observe=lambda part: recorders[part.ffn].add(part.z, part.gates)
        )
        for stage in track(_by_layer(ffns), "prune", show=progress):
            recorders = {ffn: Recorder.of(ffn, settings.sample_size, seed=settings.seed) for ffn in stage}
            with timed(seconds, "capture"):
                examples = next(sequence)
            with timed(seconds, "measure"):
                statistics = prepare_experts(stage, [recorder.finish() for recorder in recorders.values()])
                evidence = [measure_ffn(ffn, s, settings) for ffn, s in zip(stage, statistics, strict=True)]
            with timed(seconds, "select"):
                chosen = select(model, stage, evidence, (), settings)[0]
            layers += chosen
            del evidence  # free the memory before the next layer needs as much
            with timed(seconds, "repair"):
                keep = {ffn: layer.kept for ffn, layer in zip(stage, chosen, strict=True)}
                prune_and_fit(keep, examples, refine=settings.refine, seed=settings.seed)
    return layers


def _by_layer(ffns: Sequence[FFN]) -> list[list[FFN]]:
    """The FFNs of each layer, in their order."""
    layers: dict[nn.Module, list[FFN]] = {}
    for ffn in ffns:
        layers.setdefault(ffn.layer, []).append(ffn)
    return list(layers.values())
