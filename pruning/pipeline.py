"""Pruning in one call.

For each layer: bring its weights, run the dense and the pruned stream through it, observe, choose, repair, write, let
go. Where the choice depends on all layers, a first walk observes them and the second one prunes.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.isolation import isolated
from mikernels.ranks import Ranks
from pruning.choose.evidence import gather_evidence
from pruning.choose.evidence_file import (
    StoredEvidence,
    ffn_names,
    has_divergence,
    load_evidence,
    load_windows,
    read_origin,
    save_evidence,
    store_evidence,
)
from pruning.choose.explain import PrunedLayer
from pruning.choose.origin import (
    CALIBRATION_SETTINGS,
    Origin,
    calibration_identity,
    check_calibration,
    check_calibration_settings,
    estimator_name,
    model_fingerprint,
)
from pruning.choose.selection import decide
from pruning.choose.sensitivity import halved_divergences
from pruning.layer_by_layer import prune_layers
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN
from pruning.model.layers import IN_MEMORY, Layers
from pruning.model.size import count_parameters, weight_bytes
from pruning.model.snapshot import restored_on_error
from pruning.model.surgery import Cut, Solution, add_input_biases, prune_ffns, update_config
from pruning.observe.batches import Inputs, Windows
from pruning.observe.calibration import Calibration, calibration_windows, comparison_batches
from pruning.observe.excerpts import Excerpt, excerpts
from pruning.observe.mixture import has_samples
from pruning.paths import check_statistics_target
from pruning.prepare import (
    calibration_or_default,
    check_one_by_one,
    check_ranks,
    check_share,
    layers_of,
    measures_all_first,
    prepare,
    run_identity,
    warn_of_few_tokens,
    warn_of_unmeasured,
)
from pruning.progress import Stages, timed
from pruning.report.manifest import Report
from pruning.settings import Settings

SIZES = {"parameters": count_parameters, "weight_bytes": weight_bytes}
"""What the manifest says of the sizes of a model, before and after."""


@isolated()
def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    calibration: Calibration = None,
    statistics: str | Path | None = None,
    save_statistics: str | Path | None = None,
    settings: Settings | None = None,
    source: Layers = IN_MEMORY,
    process_group: Any = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Drop the redundant neurons of every FFN of `model`, in place.

    Args:
        model: a Hugging Face model, de-quantized, whose config sets the widths of its FFNs (`pruning.model.knobs`).
            What accelerate has offloaded to the CPU or to disk is pruned where it is, layer by layer.
        tokenizer: of the model; may be None if `calibration` is a tensor.
        calibration: what to run the model on. Text, of which about `calibration_tokens` are read, in windows of
            `sequence_length`: a str; a Path of text, JSON lines or Parquet; sources (`pruning.observe.sources`); a
            data set (of `datasets`) with a column `text` or `messages`. A list of texts, each a sequence of its own.
            Token ids, all of which are used: an integer tensor or NumPy array `[n, L]`, a list of sequences, a
            dict with `input_ids` and optionally `attention_mask` (a `BatchEncoding`), or an iterable of such dicts (a
            `DataLoader`). Padding does not count. Batches of other inputs by name, such as `pixel_values`, are used as
            they are. By default the tokens in `statistics`, or equal parts of the language reference that ships with
            CPython and of text that the model writes itself, if it can.
        statistics: a file that an earlier run wrote to `save_statistics`, used instead of capturing and measuring. With
            `repair="lstsq"` the model then does not run at all, except to compare `candidates` and to measure what
            `budget="kl"` needs and the file lacks. They must be of this very model, and calibration that is given or
            needed as well must be the tokens that they were measured on. `calibration_tokens` and `sample_size` are
            theirs: other values than these and the defaults are refused.
        save_statistics: a file for the statistics, and for what `budget="kl"` measured, for later runs with other
            ratios, criteria and budgets; written before anything is selected.
        settings, options: the options, as an instance of `pruning.Settings`, which documents them, or one by one as
            keywords, which override it.
        source: where the weights of the layers are, if not in memory (`pruning.model.on_disk`).
        process_group: of `torch.distributed`, such as `torch.distributed.group.WORLD`. All of its processes call with
            the same arguments, each with a model of its own; each runs its share of the calibration, and all end with
            the same pruned model and the same report. An error of one is raised on all. A group is never used unless
            it is named here.
        progress: show a progress bar for each stage.

    A layer is completed before the next one is looked at. Where the widths of layers depend on each other, or
    statistics are saved, all of them are measured first; the measurements are kept on disk, in the folder for
    temporary files, as N^2 x 8 bytes and `sample_size` x N activations for each layer.

    Memory beyond the model, on the device of its weights: the pruned FFN weights, since the dense ones stay until the
    end, to be put back after an error (not with a `source` on disk); for one layer N^2 x 16 bytes (N^2 x 20 with
    sequential repair) and `sample_size` x N activations; the hidden states of all tokens, with sequential repair twice,
    and then for one layer the inputs of its FFN. Models whose layers cannot be run one by one have up to 2 GiB of
    moments at a time.

    Returns:
        What was dropped and why. The model's config describes the pruned model: `model.save_pretrained` gives a
        checkpoint that stock transformers can load (with `budget="uniform"`).

    Raises:
        ValueError: settings out of range, no config entry that sets the width of FFNs, an FFN whose neurons depend on
            each other, layers that cannot be followed (with `repair="sequential"`), too little text, a ratio that
            rounding or the cap makes unreachable, statistics of another model, calibration or estimator, NaN or
            infinite activations; processes of a group that differ in settings, versions, weights or calibration, or
            more of them than windows. The model is then unchanged.
        RuntimeError: another process of the group has failed or ended.
        OSError: no such statistics file, or no folder to save one in, or other data in its place.
    """
    ranks = Ranks(process_group)
    with ranks.together():
        return _prune(
            model,
            tokenizer,
            calibration,
            statistics,
            save_statistics,
            settings,
            source,
            ranks,
            progress,
            options,
        )


def _prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Calibration,
    statistics: str | Path | None,
    save_statistics: str | Path | None,
    settings: Settings | None,
    source: Layers,
    ranks: Ranks,
    progress: bool,
    options: Mapping[str, object],
) -> Report:
    """`prune`, of which errors are raised on this process only."""
    progress = progress and ranks.is_first
    settings = replace(settings or Settings(), **options)  # type: ignore[arg-type]  # checked there
    origin = Origin(estimator_name(settings.estimator, settings.nodes), "")
    if save_statistics is not None:
        check_statistics_target(save_statistics)
    if statistics is not None:
        check_calibration_settings(settings, read_origin(statistics).calibration, str(statistics))
    if source is IN_MEMORY:
        source = layers_of(model)  # raises before the model is read
        if not source.in_memory:
            check_one_by_one(settings, "offloaded")
    if not (files := source.fingerprint()):
        origin = replace(origin, model=model_fingerprint(model))
    lacks_divergence = settings.budget == "kl" and (statistics is None or not has_divergence(statistics))
    need_windows = (
        statistics is None
        or calibration is not None
        or settings.repair in ("auto", "sequential")
        or settings.candidates > 1
        or lacks_divergence
    )
    if need_windows:
        calibration = calibration_or_default(calibration, statistics, model, tokenizer)
    ffns, windows, settings, left, n_ffns, follow = prepare(
        model,
        tokenizer,
        calibration,
        settings,
        source,
        need_windows=need_windows,
        measured=None if statistics is None else ffn_names(statistics),
    )
    evidence: StoredEvidence | None = None
    if statistics is not None:
        evidence = load_evidence(statistics, ffns, estimator=origin.estimator, model=origin.model)
        origin = read_origin(statistics)
    seconds = Stages()
    own = windows is not None and has_samples(calibration)  # others stood in for them until here
    if ranks.count > 1:
        given = {
            "statistics": str(statistics),
            "save_statistics": str(save_statistics),
            "samples": str(own),
        }
        check_ranks(ranks, model, source, run_identity(settings, windows) | given)
    if own:
        with timed(seconds, "sample"):
            windows = ranks.from_first(
                lambda: calibration_windows(model, tokenizer, calibration, settings, progress=progress)
            )
    check_share(ranks, windows)
    batches = ranks.share(windows).split(settings.batch_size) if windows is not None else ()
    comparison = comparison_batches(windows, settings.batch_size) if windows is not None else ()
    if windows is not None:
        identity = calibration_identity(windows, settings)
        if ranks.count > 1:
            identity["processes"] = ranks.count
        if statistics is not None:
            check_calibration(identity, origin.calibration, str(statistics))
        origin = replace(origin, calibration=origin.calibration or identity)
    tokens = load_windows(statistics) if windows is None and statistics is not None else windows
    notes: dict[str, Any] = {"calibration": origin.calibration}
    notes["ffns"] = {"pruned": len(ffns), "of": n_ffns, "left": left}
    notes |= {name: {"before": count(model)} for name, count in SIZES.items()}
    notes["model_fingerprint"] = origin.model or f"files:{files}"
    if statistics is not None:
        notes["calibration"] = origin.calibration | {"statistics": str(statistics)}
    n_tokens = windows.n_tokens if windows is not None else 0
    with (
        TemporaryDirectory() as folder,
        source.restored_on_error(),
        restored_on_error(ffns),
        evaluation_mode(model),
    ):
        whole = measures_all_first(settings, save_statistics=save_statistics is not None)
        if evidence is None and (whole or not follow):  # the first walk
            measured = gather_evidence(
                model,
                ffns,
                batches,
                settings,
                source,
                follow=follow,
                any_ratio=save_statistics is not None,
                ranks=ranks,
                seconds=seconds,
                progress=progress,
            )
            evidence = store_evidence(measured, ffns, Path(folder))
        if evidence is not None:
            n_tokens = evidence.n_tokens
            if save_statistics is not None and ranks.is_first:
                save_evidence(evidence, save_statistics, origin, tokens)
            if lacks_divergence:
                with timed(seconds, "sensitivity"):
                    evidence.divergences = ranks.from_first(
                        partial(halved_divergences, model, ffns, evidence, comparison)
                    )
                if save_statistics is not None and ranks.is_first:
                    save_evidence(evidence, save_statistics, origin, tokens)
        warn_of_few_tokens(n_tokens, ffns, settings)
        with timed(seconds, "select"):
            decision = ranks.from_first(
                partial(decide, model, ffns, evidence or (), comparison, settings, progress=progress)
            )
        complete = _complete_layers(ffns, source, settings, windows)
        layers = prune_layers(
            model,
            ffns,
            batches,
            evidence,
            decision,
            settings,
            source,
            complete=complete,
            ranks=ranks,
            seconds=seconds,
            progress=progress,
        )
        _shrink(ffns, complete, settings)
    update_config(model, ffns)
    for name, count in SIZES.items():
        notes[name]["after"] = count(model)
    if complete:
        notes["resumed"] = {"complete_ffns": len(complete)}
    warn_of_unmeasured(layers)
    effective = asdict(settings)
    if statistics is not None:  # which were measured with settings of their own
        effective |= {name: origin.calibration.get(name, effective[name]) for name in CALIBRATION_SETTINGS}
    report = Report(effective, n_tokens, layers, seconds, decision.candidates, notes)
    if settings.text and tokenizer is not None and ranks.is_first:
        report.excerpts = _excerpts(layers, tokens, tokenizer, origin.calibration.get("processes", 1))
    return report


def _excerpts(
    layers: Sequence[PrunedLayer],
    windows: Windows | Inputs | None,
    tokenizer: PreTrainedTokenizerBase,
    n_processes: int,
) -> dict[int, Excerpt]:
    """The text around the tokens in the pictures, where the model reads nothing but one text."""
    if not isinstance(windows, Windows) or windows.decoder_start is not None:
        return {}
    pictures = [layer.picture for layer in layers if layer.picture is not None]
    named = [token for picture in pictures for token in picture.tokens.flatten().tolist()]
    try:
        return excerpts(windows, tokenizer, named, n_processes)
    except Exception as error:  # of any tokenizer, after all the work is done
        warnings.warn(
            f"tokenizer: expected one that decodes the tokens of the calibration, got: {error}; the report shows none "
            f"of its words",
            UserWarning,
            stacklevel=2,
        )
        return {}


def _complete_layers(
    ffns: Sequence[FFN], source: Layers, settings: Settings, windows: Windows | Inputs | None
) -> list[PrunedLayer]:
    """The layers that an earlier run has completed.

    Raises:
        ValueError: it had other settings, calibration, versions or weights.
    """
    identity = run_identity(settings, windows)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in source.go_on(identity).items():
        name, _, field = key.rpartition("/")
        by_name.setdefault(name, {})[field] = tensor
    return [PrunedLayer.from_tensors(f.name, by_name[f.name]) for f in ffns if f.name in by_name]


def _shrink(ffns: Sequence[FFN], layers: Sequence[PrunedLayer], settings: Settings) -> None:
    """Give the first FFNs, whose layers an earlier run has written, the shapes that they have there."""
    cuts = []
    for ffn, layer in zip(ffns, layers, strict=False):
        weight, bias = ffn.output.weight, ffn.output.bias
        if bias is None and settings.repair == "bias":
            bias = weight.new_empty(len(weight))
        kept = layer.kept.to(weight.device)
        cuts.append(Cut(ffn, kept, Solution(weight[:, : len(kept)], bias)))
    prune_ffns(cuts)
    add_input_biases([cut.ffn for cut in cuts])
