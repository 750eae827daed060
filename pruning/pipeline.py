"""The whole of pruning in one call: capture, measure, select, repair, operate."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.choose import sensitivity
from pruning.choose.budget import check_cap, uniform_width
from pruning.choose.evidence import Evidence, load_evidence, measure, save_evidence
from pruning.choose.selection import choose
from pruning.model.families import FFN, find_ffns, text_config
from pruning.model.surgery import prune_separately, restored_on_error, update_config
from pruning.observe.capture import Recorder, Statistics, capture, evaluation_mode
from pruning.observe.divergence import few
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.progress import track
from pruning.repair.lockstep import Stream
from pruning.repair.sequential import in_sequence, prune_to, repair_in_sequence
from pruning.report.manifest import Layer, Report
from pruning.settings import Settings

TOKENS_PER_NEURON = 4
"""Calibration tokens for each kept neuron below which least squares is warned about."""
PROBE_TOKENS = 8
"""Tokens on which sequential repair finds out whether it can follow a model from layer to layer."""


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    calibration: str | Path | Tensor | None = None,
    statistics: str | Path | None = None,
    save_statistics: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Drop the redundant neurons of every FFN of `model`, in place.

    Args:
        model: a Hugging Face model of a known layout (`pruning.model.families`), de-quantized, in memory.
        tokenizer: of the model; may be None where `calibration` is a tensor.
        calibration: a text (str), the path of a UTF-8 text file (Path), or windows of tokens `[n, L]`. By
            default half of the language reference that ships inside CPython.
        statistics: a file that an earlier run wrote to `save_statistics`; nothing is captured or measured then but
            what `budget="kl"` needs and the file lacks, and with `repair="lstsq"` the model does not run at all
            (but to compare `candidates`).
        save_statistics: a file for the statistics, and for what `budget="kl"` measured, for other ratios, criteria
            and budgets later; written before anything is selected.
        settings, options: as a whole, or one by one by keyword, which has the last word:
            ratio: share of the neurons to drop.
            criterion: `"conditional-mi"` drops what tells least about the layer's output, given what stays;
                `"pairwise-mi"` drops what has both low fluctuation and a kept partner that shares its
                information; `"random-pairs"` is the paper's; `"flap"`, `"wanda"`, `"magnitude"` and
                `"random"` are baselines.
            repair: `"sequential"` fits each layer's output projection to the dense hidden states after it, with
                what earlier layers lost; `"lstsq"` folds a least-squares prediction of the dropped neurons into
                it, `"bias"` adds their means (only where the class stores a bias), `"none"` cuts.
            refine: after each layer's sequential repair, a short descent of all its projections towards the same
                target: block by block, without labels and without gradients through the model. It gains more,
                and takes longer, the more tokens of calibration there are.
            budget: `"uniform"` drops the same number in every layer, so that stock transformers loads the result;
                `"mi"` and `"kl"` give sensitive layers more (`pruning.choose.sensitivity`): better, and
                `pruning.load_model` loads it.
            max_layer_ratio: the most that a budget takes from one layer.
            threshold: Tr of `"random-pairs"`: nats, or `"null:0.999"` for what independent neurons exceed with
                probability 0.001 at this sample size and estimator; by default each layer's median MI.
            clusters: of the neurons of each layer, by what they do (`pruning.choose.clusters`): `"random-pairs"`
                seeks its pairs within them only.
            candidates: selections that `"random-pairs"` draws, by seed, seed + 1 and so on. The one whose pruned
                model diverges least from the dense one on a few calibration windows is taken; where the repair is
                sequential, they are judged with least squares.
            multiple_of: the width that stays is rounded to the nearest multiple of it. 32 suits GGUF's
                block formats; 128 suits GPUs.
            calibration_tokens, sequence_length, batch_size: how much text the model reads, and how.
            sample_size: M, tokens that the MI estimate uses.
            estimator, nodes: of `mikernels.mutual_information`.
            seed: of the sample of tokens and of what is random in a criterion.
        progress: show a bar with the time left for each stage.

    Memory beyond the model, on the device of its weights: for a layer N^2 x 8 bytes of moments and mutual information
    and `sample_size` x N activations; with sequential repair the hidden states of all tokens twice, and of one layer
    its neurons and what goes past them. Sequential repair under the uniform budget is done with a layer before the
    next one is looked at; with any other settings, or `save_statistics`, the moments of all layers are kept at once.

    Returns:
        What was dropped and why. The model's config describes what is left, so that
        `model.save_pretrained` gives a checkpoint that stock transformers loads (with `budget="uniform"`).

    Raises:
        ValueError: settings out of range, no known FFN, something between the known layers where the repair is
            sequential, too little text, a ratio that the rounding or the cap makes unreachable, statistics of
            another model or estimator, NaN or infinite activations. The model is then as it was.
        FileNotFoundError: no such file of statistics, or no folder for those to save.
    """
    settings = replace(settings or Settings(), **options)  # type: ignore[arg-type]  # checked there
    made: Any = {"estimator": settings.estimator, "nodes": settings.nodes}
    if save_statistics is not None and not Path(save_statistics).parent.is_dir():
        raise FileNotFoundError(
            f"save_statistics: expected an existing folder, got {Path(save_statistics).parent}"
        )
    evidence = None if statistics is None else load_evidence(statistics, find_ffns(model), **made)
    need_windows = (
        evidence is None
        or settings.repair == "sequential"
        or settings.candidates > 1
        or _wants_divergence(settings, evidence)
    )
    ffns, windows = prepare(model, tokenizer, calibration, settings, need_windows=need_windows)
    batches = windows.split(settings.batch_size) if windows is not None else ()
    some = few(windows, settings.batch_size) if windows is not None else ()
    seconds: dict[str, float] = {}
    if evidence is None and save_statistics is None and _fits_in_one_pass(settings):
        n_tokens = sum(batch.numel() for batch in batches)
        _warn_of_few_tokens(n_tokens, ffns[0].width, settings)
        layers = _prune_in_one_pass(model, ffns, batches, settings, seconds, progress=progress)
        update_config(model, ffns)
        return Report(asdict(settings), n_tokens, layers, seconds)
    if evidence is None:
        evidence = _gather(model, ffns, batches, settings, seconds, progress=progress)
    if save_statistics is not None:
        save_evidence(evidence, save_statistics, **made)
    if _wants_divergence(settings, evidence):
        with _clock(seconds, "sensitivity"):
            evidence = sensitivity.with_divergence(model, ffns, evidence, some)
        if save_statistics is not None:
            save_evidence(evidence, save_statistics, **made)
    n_tokens = evidence[0].statistics.n_tokens
    _warn_of_few_tokens(n_tokens, ffns[0].width, settings)
    with _clock(seconds, "select"):
        layers, divergence = choose(model, ffns, evidence, some, settings, progress=progress)
    with _clock(seconds, "repair"):
        kept = track([layer.kept for layer in layers], "repair", show=progress)
        if settings.repair == "sequential":
            del evidence  # as large as the hidden states that come now
            repair_in_sequence(model, ffns, kept, batches, refine=settings.refine, seed=settings.seed)
        else:
            gathered = [known.statistics for known in evidence]
            prune_separately(ffns, kept, gathered, settings.repair)
    update_config(model, ffns)
    return Report(asdict(settings), n_tokens, layers, seconds, divergence)


def _fits_in_one_pass(settings: Settings) -> bool:
    """Whether nothing is decided by looking at several layers at once."""
    return settings.repair == "sequential" and settings.budget == "uniform" and settings.candidates == 1


def _prune_in_one_pass(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Tensor],
    settings: Settings,
    seconds: dict[str, float],
    *,
    progress: bool,
) -> list[Layer]:
    """Record, measure, choose and repair layer after layer: the statistics of one are in memory at a time, and the
    dense stream of the repair is all the calibration that there is."""
    layers: list[Layer] = []
    with restored_on_error(ffns), evaluation_mode(model):
        sequence = in_sequence(model, ffns, batches, watch=lambda z: recorder.add(z))
        for ffn in track(ffns, "prune", show=progress):
            recorder = Recorder.of(ffn, settings.sample_size, seed=settings.seed)
            with _clock(seconds, "capture"):
                examples = next(sequence)
            with _clock(seconds, "measure"):
                known = _measure(ffn, recorder.finish(), settings)
            with _clock(seconds, "select"):
                layers += choose(model, [ffn], [known], (), settings)[0]
            del known  # before the next layer's takes as much memory
            with _clock(seconds, "repair"):
                prune_to(ffn, layers[-1].kept, examples, refine=settings.refine, seed=settings.seed)
    return layers


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: str | Path | Tensor | None,
    settings: Settings,
    *,
    need_windows: bool = True,
) -> tuple[list[FFN], Tensor | None]:
    """The FFNs and the windows of calibration tokens, after all that can be checked in a moment.

    Raises:
        ValueError: as `prune`.
    """
    ffns = find_ffns(model)
    widths = sorted({ffn.width for ffn in ffns})
    for width in widths:
        uniform_width(width, settings.ratio, settings.multiple_of)
    if settings.clusters > widths[0]:
        raise ValueError(
            f"clusters: expected at most the {widths[0]} neurons of a layer, got {settings.clusters}"
        )
    if settings.budget != "uniform":
        check_cap(widths[0], settings.ratio, settings.multiple_of, settings.max_layer_ratio)
        if len(widths) > 1:
            raise ValueError(f"budget: {settings.budget!r} expects layers of one width, got {widths}")
    if settings.repair == "bias" and not all(ffn.can_store_bias for ffn in ffns):
        raise ValueError(
            f"repair: {type(model).__name__} cannot store a bias, expected 'sequential', 'lstsq' or 'none'"
        )
    if not need_windows:
        return ffns, None
    windows = _calibration_windows(model, tokenizer, calibration, settings)
    longest = getattr(text_config(model), "max_position_embeddings", windows.shape[1])
    if windows.shape[1] > longest:
        raise ValueError(
            f"sequence_length: expected at most the {longest} tokens that the model reads, got {windows.shape[1]}"
        )
    if settings.repair == "sequential":
        with evaluation_mode(model):  # raises where something stands between the layers
            Stream(model, ffns, [windows[:1, :PROBE_TOKENS]])
    return ffns, windows


def _gather(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Tensor],
    settings: Settings,
    seconds: dict[str, float],
    *,
    progress: bool,
) -> list[Evidence]:
    """What is known of each FFN, of which nothing stays behind here."""
    with _clock(seconds, "capture"):
        shown = track(batches, "capture", show=progress)
        captured = capture(model, ffns, shown, sample_size=settings.sample_size, seed=settings.seed)
    with _clock(seconds, "measure"):
        pairs = track(list(zip(ffns, captured, strict=True)), "measure", show=progress)
        return [_measure(ffn, statistics, settings) for ffn, statistics in pairs]


def _measure(ffn: FFN, statistics: Statistics, settings: Settings) -> Evidence:
    return measure(ffn, statistics, estimator=settings.estimator, nodes=settings.nodes, seed=settings.seed)


def _warn_of_few_tokens(n_tokens: int, width: int, settings: Settings) -> None:
    n_keep = uniform_width(width, settings.ratio, settings.multiple_of)
    if settings.repair in ("lstsq", "sequential") and n_tokens < TOKENS_PER_NEURON * n_keep:
        warnings.warn(
            f"calibration: {n_tokens} tokens for {n_keep} kept neurons a layer; least squares wants "
            f"{TOKENS_PER_NEURON} for each or more, with fewer it fits their noise",
            stacklevel=3,
        )


def _wants_divergence(settings: Settings, evidence: Sequence[Evidence]) -> bool:
    """Whether the budget needs what nobody has measured yet."""
    return settings.budget == "kl" and any(known.divergence is None for known in evidence)


def _calibration_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: str | Path | Tensor | None,
    settings: Settings,
) -> Tensor:
    if isinstance(calibration, Tensor):
        if calibration.ndim != 2 or calibration.is_floating_point() or calibration.numel() == 0:
            raise ValueError(
                f"calibration: expected windows of token ids [n, L], got {calibration.dtype} {list(calibration.shape)}"
            )
        return calibration
    if tokenizer is None:
        raise ValueError("tokenizer: expected one for calibration text, got None")
    if calibration is None:
        calibration = builtin_text()[0]
    if isinstance(calibration, str) and len(calibration) < 256 and Path(calibration).is_file():
        raise ValueError(
            f"calibration: expected text, got the name of a file; pass Path({calibration!r}) to read it"
        )
    text = read_text(calibration) if isinstance(calibration, Path) else calibration
    limit = max(1, settings.calibration_tokens // settings.sequence_length)
    return token_windows(
        tokenizer, text, settings.sequence_length, limit=limit, whole=not model.can_generate()
    )


@contextmanager
def _clock(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
