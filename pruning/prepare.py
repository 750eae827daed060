"""Everything that can be checked before the first long step of a run."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.choose.budget import check_cap, kept_width
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN, find_ffns, knobs_of
from pruning.model.saved import check_config
from pruning.observe.batches import Batch, Windows
from pruning.observe.calibration import Calibration, calibration_windows
from pruning.observe.trial import check_neurons
from pruning.repair.stream import Stream
from pruning.settings import Settings

TOKENS_PER_NEURON = 4
"""Least squares needs at least this many calibration tokens per kept neuron; with fewer we warn."""
PROBE_TOKENS = 8
"""Tokens for trying the model out before the long steps."""


class Prepared(NamedTuple):
    """What a run works on.

    Attributes:
        ffns: to prune.
        windows: of calibration tokens, or None if none are needed.
        settings: with the repair that `"auto"` stands for.
    """

    ffns: list[FFN]
    windows: Windows | None
    settings: Settings


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Calibration,
    settings: Settings,
    *,
    need_windows: bool = True,
) -> Prepared:
    """Check the settings against the model, read the calibration text, and try the model on a few tokens.

    Raises:
        ValueError: see `pruning.prune`.
    """
    ffns = find_ffns(model)
    widths = sorted({ffn.width for ffn in ffns})
    kept = [kept_width(ffn, settings.ratio, settings.multiple_of) for ffn in ffns]
    if settings.clusters > widths[0]:
        raise ValueError(
            f"clusters: expected at most the {widths[0]} neurons of a layer, got {settings.clusters}"
        )
    if settings.budget != "uniform":
        _check_budget(ffns, settings)
    if settings.repair == "bias" and not all(ffn.can_store_bias for ffn in ffns):
        raise ValueError(
            f"repair: expected 'sequential', 'lstsq' or 'none' for {type(model).__name__}, which cannot store a bias, "
            f"got 'bias'"
        )
    adds_bias = settings.repair == "bias" and not all(ffn.had_bias for ffn in ffns)
    check_config(model, ffns, kept, adds_bias=adds_bias)
    if not need_windows:
        return Prepared(ffns, None, _resolved(model, ffns, (), settings))
    windows = calibration_windows(model, tokenizer, calibration, settings)
    probe = [windows.sequences[0][None, :PROBE_TOKENS]]
    check_neurons(model, ffns, probe[0])
    return Prepared(ffns, windows, _resolved(model, ffns, probe, settings))


def warn_of_few_tokens(n_tokens: int, ffns: Sequence[FFN], settings: Settings) -> None:
    """Warn, with the caller of `prune` as the location, if least squares has too few tokens."""
    n_keep = max(kept_width(ffn, settings.ratio, settings.multiple_of) for ffn in ffns)
    if settings.repair in ("lstsq", "sequential") and n_tokens < TOKENS_PER_NEURON * n_keep:
        warnings.warn(
            f"calibration: expected at least {TOKENS_PER_NEURON} tokens for each of the {n_keep} kept neurons of a "
            f"layer, got {n_tokens} tokens; least squares will fit noise",
            stacklevel=4,  # one for the decorator of `prune`
        )


def _resolved(
    model: PreTrainedModel, ffns: Sequence[FFN], probe: Sequence[Batch], settings: Settings
) -> Settings:
    """The settings with the repair that "auto" stands for: sequential if the layers of the model can be followed.

    Raises:
        ValueError: `repair="sequential"` where they cannot.
    """
    if settings.repair not in ("auto", "sequential"):
        return settings
    try:
        with evaluation_mode(model):
            Stream(model, ffns, probe)
    except ValueError:
        if settings.repair == "sequential" or settings.refine:
            raise
        return replace(settings, repair="lstsq")
    return replace(settings, repair="sequential")


def _check_budget(ffns: Sequence[FFN], settings: Settings) -> None:
    if len(knobs_of(ffns)) > 1 or any(ffn.is_routed or ffn.scale != 1 for ffn in ffns):
        raise ValueError(
            f"budget: expected 'uniform' for a model with experts or FFNs of several kinds, got {settings.budget!r}"
        )
    widths = sorted({ffn.width for ffn in ffns})
    check_cap(widths[0], settings.ratio, settings.multiple_of, settings.max_layer_ratio)
    if len(widths) > 1:
        raise ValueError(f"budget: expected layers of one width for {settings.budget!r}, got {widths}")
