"""The whole of pruning in one call: capture, measure, select, repair, operate."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mikernels
from mikernels.null import null_level, null_threshold
from mikernels.problem import Estimator, make_problem
from mikernels.validation import MIN_SAMPLES
from pruning import select
from pruning.capture import Statistics, capture
from pruning.families import FFN, find_ffns, text_config
from pruning.progress import track
from pruning.repair import Repair, complement, explained_variance, repair_projection
from pruning.report import Layer, Report
from pruning.surgery import prune_ffn, update_config
from pruning.text import builtin_text, read_text, token_windows

TOKENS_PER_NEURON = 4
"""Calibration tokens for each kept neuron below which least squares is warned about."""

Criterion = Literal["pairwise-mi", "random-pairs", "flap", "wanda", "magnitude", "random"]


@dataclass(frozen=True)
class Settings:
    """How to prune; `prune` says what each means."""

    ratio: float = 0.2
    criterion: Criterion = "pairwise-mi"
    repair: Repair = "lstsq"
    threshold: float | str | None = None
    multiple_of: int = 32
    calibration_tokens: int = 16_384
    sequence_length: int = 512
    batch_size: int = 4
    sample_size: int = 4096
    estimator: Estimator = "grid"
    nodes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio: expected a number between 0 and 1, both excluded, got {self.ratio}")
        for name, options in (("criterion", Criterion), ("repair", Repair), ("estimator", Estimator)):
            value = getattr(self, name)
            if value not in get_args(options):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(options))}, got {value!r}")
        for name in ("multiple_of", "calibration_tokens", "sequence_length", "batch_size", "sample_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        make_problem(self.estimator, self.nodes, None, self.sample_size)
        if self.sample_size < MIN_SAMPLES:
            raise ValueError(f"sample_size: expected at least {MIN_SAMPLES} tokens, got {self.sample_size}")
        if self.threshold is not None and self.criterion != "random-pairs":
            raise ValueError(
                f"threshold: expected only with criterion='random-pairs', got it with {self.criterion!r}"
            )
        if isinstance(self.threshold, str):
            null_level(self.threshold)


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    calibration: str | Path | Tensor | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Drop the redundant neurons of every FFN of `model`, in place.

    Args:
        model: a Hugging Face model of a known layout (`pruning.families`), de-quantized, in memory.
        tokenizer: of the model; may be None where `calibration` is a tensor.
        calibration: a text (str), the path of a UTF-8 text file (Path), or windows of tokens `[n, L]`. By
            default half of the language reference that ships inside CPython.
        settings, options: as a whole, or one by one by keyword, which has the last word:
            ratio: share of the neurons to drop, in every layer alike.
            criterion: `"pairwise-mi"` drops what has both low fluctuation and a kept partner that shares
                its information; `"random-pairs"` is the paper's; `"flap"`, `"wanda"`, `"magnitude"` and
                `"random"` are baselines.
            repair: `"lstsq"` folds a least-squares prediction of the dropped neurons into the output
                projection, `"bias"` adds their means (only where the class stores a bias), `"none"` cuts.
            threshold: Tr of `"random-pairs"`: nats, or `"null:0.999"` for what independent neurons exceed with
                probability 0.001 at this sample size and estimator; by default each layer's median MI.
            multiple_of: the width that stays is rounded to the nearest multiple of it. 32 suits GGUF's
                block formats; 128 suits GPUs.
            calibration_tokens, sequence_length, batch_size: how much text the model reads, and how.
            sample_size: M, tokens that the MI estimate uses.
            estimator, nodes: of `mikernels.mutual_information`.
            seed: of the sample of tokens and of what is random in a criterion.
        progress: show a bar with the time left for each stage.

    Memory beyond the model: for each layer N^2 x 4 bytes of moments and `sample_size` x N activations, on the
    device of its weights, until all layers are pruned.

    Returns:
        What was dropped and why. The model's config describes what is left, so that
        `model.save_pretrained` gives a checkpoint that stock transformers loads.

    Raises:
        ValueError: settings out of range, no known FFN, too little text, a ratio that the rounding makes
            unreachable, NaN or infinite activations. The model is then as it was.
    """
    settings = replace(settings or Settings(), **options)  # type: ignore[arg-type]  # checked there
    ffns, windows = prepare(model, tokenizer, calibration, settings)
    n_keep = rounded_width(ffns[0].width, settings)
    intercept = settings.repair == "bias" or ffns[0].output.bias is not None

    if settings.repair == "lstsq" and windows.numel() < TOKENS_PER_NEURON * n_keep:
        warnings.warn(
            f"calibration: {windows.numel()} tokens for {n_keep} kept neurons a layer; least squares wants "
            f"{TOKENS_PER_NEURON} for each or more, with fewer it fits their noise",
            stacklevel=2,
        )
    seconds: dict[str, float] = {}
    with _clock(seconds, "capture"):
        batches = track(windows.split(settings.batch_size), "capture", show=progress)
        statistics = capture(model, ffns, batches, sample_size=settings.sample_size, seed=settings.seed)
    layers = []
    with _clock(seconds, "measure"):
        for ffn, gathered in track(list(zip(ffns, statistics, strict=True)), "measure", show=progress):
            layers.append(_plan(ffn, gathered, n_keep, settings))
    with _clock(seconds, "repair"):
        plans = list(zip(ffns, statistics, layers, strict=True))
        projections = [
            repair_projection(
                ffn.output.weight, ffn.output.bias, layer.kept, gathered, settings.repair, intercept=intercept
            ).to(ffn.output.weight.dtype)
            for ffn, gathered, layer in track(plans, "repair", show=progress)
        ]
        for ffn, layer, projection in zip(ffns, layers, projections, strict=True):
            prune_ffn(ffn, layer.kept, projection)
        update_config(model, ffns)
    return Report(asdict(settings), windows.numel(), layers, seconds)


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: str | Path | Tensor | None,
    settings: Settings,
) -> tuple[list[FFN], Tensor]:
    """The FFNs and the windows of calibration tokens, after all that can be checked without running the model.

    Raises:
        ValueError: as `prune`.
    """
    ffns = find_ffns(model)
    rounded_width(ffns[0].width, settings)
    if settings.repair == "bias" and not all(ffn.can_store_bias for ffn in ffns):
        raise ValueError(f"repair: {type(model).__name__} cannot store a bias, expected 'lstsq' or 'none'")
    windows = _calibration_windows(model, tokenizer, calibration, settings)
    longest = getattr(text_config(model), "max_position_embeddings", windows.shape[1])
    if windows.shape[1] > longest:
        raise ValueError(
            f"sequence_length: expected at most the {longest} tokens that the model reads, got {windows.shape[1]}"
        )
    return ffns, windows


def rounded_width(width: int, settings: Settings) -> int:
    """Neurons that stay in a layer of `width`: the multiple nearest to what the ratio asks for.

    Raises:
        ValueError: rounding leaves all of them or none.
    """
    multiple = settings.multiple_of
    n_keep = round(width * (1 - settings.ratio) / multiple) * multiple
    if not 0 < n_keep < width:
        raise ValueError(
            f"ratio: {settings.ratio} of {width} neurons, rounded to a multiple of {multiple}, keeps {n_keep}; "
            f"expected some to stay and some to go: choose another ratio or a smaller multiple_of"
        )
    return n_keep


def _plan(ffn: FFN, statistics: Statistics, n_keep: int, settings: Settings) -> Layer:
    """Measure and select in one layer."""
    try:
        mi = mikernels.mutual_information(
            statistics.sample, estimator=settings.estimator, nodes=settings.nodes, seed=settings.seed
        )
    except ValueError as error:
        raise ValueError(f"{ffn.name}: {error}") from error
    mi.fill_diagonal_(0.0)
    n_drop = ffn.width - n_keep
    pairs = torch.ones_like(mi, dtype=torch.bool).triu_(1)
    median_mi = float(mi[pairs].median())
    saliency = _saliency(ffn, statistics, settings.criterion)
    if settings.criterion == "random":
        order = select.random_order(ffn.width, seed=settings.seed)
    elif settings.criterion == "random-pairs":
        threshold = _nats(settings, len(statistics.sample), median_mi)
        order = select.random_pairs(mi, n_drop, threshold=threshold, seed=settings.seed)
    elif settings.criterion == "pairwise-mi":
        order = select.redundancy_saliency(mi, saliency)
    else:
        order = select.ascending(saliency)
    kept = complement(order[:n_drop].to(mi.device), ffn.width)
    dropped = complement(kept, ffn.width)
    best = mi[dropped][:, kept].max(1)
    return Layer(
        name=ffn.name,
        kept=kept,
        dropped=dropped,
        partner=kept[best.indices],
        mi=best.values,
        linear_r2=explained_variance(statistics, kept, dropped),
        saliency=saliency[dropped],
        median_mi=median_mi,
    )


def _nats(settings: Settings, n_samples: int, median_mi: float) -> float:
    """The threshold of a layer, nats."""
    if isinstance(settings.threshold, str):
        return null_threshold(
            settings.threshold, n_samples, estimator=settings.estimator, nodes=settings.nodes
        )
    return median_mi if settings.threshold is None else settings.threshold


def _saliency(ffn: FFN, statistics: Statistics, criterion: Criterion) -> Tensor:
    if criterion == "magnitude":
        return select.magnitude(ffn)
    if criterion == "wanda":
        return select.wanda(ffn, statistics)
    return select.fluctuation(ffn, statistics)


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
    seconds[stage] = time.perf_counter() - start
