"""What several ratios would cost, from one walk over the calibration; nothing is saved."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.isolation import isolated
from pruning.choose.evidence import gather_evidence
from pruning.choose.evidence_file import store_evidence
from pruning.choose.selection import decide
from pruning.choose.sensitivity import halved_divergences
from pruning.choose.target import Size, pruned_size
from pruning.layer_by_layer import prune_layers
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.precision import round_weights, weight_dtypes
from pruning.model.snapshot import restored
from pruning.observe.batches import Windows
from pruning.observe.calibration import Calibration, calibration_windows, comparison_batches
from pruning.observe.mixture import default_sources, has_samples, text_windows
from pruning.observe.sources import builtin
from pruning.prepare import prepare, warn_of_few_tokens
from pruning.progress import timed
from pruning.report.comparison import Evaluation, cosine, evaluate
from pruning.report.manifest import plain_json
from pruning.report.quality import log_ratio_error
from pruning.report.swept import cells, read_rows
from pruning.report.table import table
from pruning.settings import Settings

EVALUATION_TOKENS = 8192
"""By default."""


@dataclass(frozen=True)
class Swept:
    """What one ratio would give.

    Attributes:
        ratio: that was asked for; 0 for the model as it is.
        widths: neurons to keep in each FFN.
        neurons: their sum.
        parameters, bytes: of the result.
        perplexity: of a causal model on each text.
        change_error: standard error of the logarithm of the change in perplexity, on each text.
        hidden_state_cosine: of any other model, on each text.
        seconds: that this ratio took beyond the walk that all share, with its evaluation.
    """

    ratio: float
    widths: list[int]
    neurons: int
    parameters: int
    bytes: int
    perplexity: dict[str, float]
    change_error: dict[str, float]
    hidden_state_cosine: dict[str, float]
    seconds: float


@isolated()
def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ratios: Sequence[float],
    *,
    calibration: Calibration = None,
    texts: Mapping[str, Windows] | None = None,
    settings: Settings | None = None,
    saved: Mapping[str, torch.dtype] | None = None,
    progress: bool = False,
    **options: object,
) -> list[Swept]:
    """Prune `model` to each ratio in turn, evaluate it, and put its weights back.

    The model runs on the calibration once to measure its neurons, for all ratios together. Sequential repair also runs
    it once for each ratio, since each pruned model has hidden states of its own. What is evaluated is what
    `pruning.prune` would give.

    Args:
        ratios: shares of the neurons to drop.
        calibration, settings, options: see `pruning.prune`.
        texts: windows to evaluate on, by name; by default 8,192 tokens of the half of the text that ships with Python
            which the default calibration does not read.
        saved: the dtype of each weight in a result, by name, if it is not that of the model. Sizes and evaluations are
            those of the result.

    Returns:
        The model as it is, and each ratio in ascending order.

    Raises:
        ValueError: see `pruning.prune`; or no ratios.
    """
    settings = replace(settings or Settings(), **options)  # type: ignore[arg-type]  # checked there
    if not ratios:
        raise ValueError("sweep: expected at least one ratio, got none")
    for name in ("target_params", "target_bytes"):
        if (target := getattr(settings, name)) is not None:
            raise ValueError(f"{name}: expected none beside the ratios of a sweep, got {target}")
    computing = weight_dtypes(model)
    stored = computing | dict(saved or {})
    most = Counter(stored.values()).most_common(1)[0][0]
    each = [replace(settings, ratio=ratio) for ratio in sorted(set(ratios))]
    calibration = default_sources(model, tokenizer) if calibration is None else calibration
    ffns, windows, prepared, _, _, follow = prepare(model, tokenizer, calibration, each[-1], saved=saved)
    for choice in each[:-1]:
        prepare(model, tokenizer, windows, choice, saved=saved)
    assert windows is not None  # noqa: S101, for the type checker
    each = [replace(prepared, ratio=choice.ratio) for choice in each]
    if texts is None:
        text = builtin(1)
        texts = {
            text.name: text_windows(model, tokenizer, [(text, 1.0)], settings, n_tokens=EVALUATION_TOKENS)
        }
    if has_samples(calibration):  # others stood in for them until here
        windows = calibration_windows(model, tokenizer, calibration, settings, progress=progress)
    batches, comparison = windows.split(settings.batch_size), comparison_batches(windows, settings.batch_size)
    measure: Any = {"prompt": None, "batch_size": settings.batch_size, "progress": progress}
    dense = evaluate(model, tokenizer, texts, name="dense", **measure)
    found = [
        _row(
            0.0,
            [ffn.width for ffn in ffns],
            pruned_size(model, ffns, None, settings, saved),
            dense,
            dense,
            0.0,
        )
    ]
    with TemporaryDirectory() as folder, evaluation_mode(model):
        walk = gather_evidence(
            model, ffns, batches, each[-1], follow=follow, any_ratio=False, progress=progress
        )
        evidence = store_evidence(walk, ffns, Path(folder))
        if settings.budget == "kl":
            evidence.divergences = halved_divergences(model, ffns, evidence, comparison)
        for choice in each:
            warn_of_few_tokens(evidence.n_tokens, ffns, choice)
            size = pruned_size(model, ffns, choice.ratio, choice, saved)
            spent: dict[str, float] = {}
            with restored(ffns), timed(spent, "ratio"):
                decision = decide(model, ffns, evidence, comparison, choice)
                layers = prune_layers(
                    model,
                    ffns,
                    batches,
                    evidence,
                    decision,
                    choice,
                    reasons=False,
                    seconds={},
                    progress=progress,
                )
                if stored != computing:
                    round_weights(model, stored, most)
                pruned = evaluate(model, tokenizer, texts, name=f"{choice.ratio:g}", **measure)
            widths = [len(layer.kept) for layer in layers]
            found.append(_row(choice.ratio, widths, size, dense, pruned, spent["ratio"]))
    return found


def sweep_table(found: Sequence[Swept]) -> str:
    """What `sweep` found, for people."""
    header, *rows = cells(read_rows(found))
    return table(rows, header)


def sweep_json(found: Sequence[Swept]) -> str:
    """What `sweep` found, for programs; NaN and infinities are null."""
    entries = [{n: plain_json(value) for n, value in asdict(entry).items()} for entry in found]
    return json.dumps({"sweep": entries}, indent=1, allow_nan=False)


def _row(
    ratio: float, widths: list[int], size: Size, dense: Evaluation, pruned: Evaluation, seconds: float
) -> Swept:
    """One row, from the evaluations of the model as it is and at this ratio."""
    return Swept(
        ratio,
        widths,
        sum(widths),
        size.parameters,
        size.bytes,
        {text: found.value for text, found in pruned.perplexity.items()},
        {text: log_ratio_error(dense.perplexity[text], found) for text, found in pruned.perplexity.items()},
        {text: cosine(dense.hidden[text], states) for text, states in pruned.hidden.items()},
        seconds,
    )
