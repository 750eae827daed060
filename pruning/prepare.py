"""Everything that can be checked before the first long step of a run."""

import warnings

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.choose.budget import check_cap, uniform_width
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.families import FFN, find_ffns
from pruning.model.saved import check_config
from pruning.observe.batches import Windows
from pruning.observe.calibration import Calibration, calibration_windows
from pruning.repair.stream import Stream
from pruning.settings import Settings

TOKENS_PER_NEURON = 4
"""Least squares needs at least this many calibration tokens per kept neuron; with fewer we warn."""
PROBE_TOKENS = 8
"""Tokens for checking that the model can be followed from layer to layer, which sequential repair needs."""


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Calibration,
    settings: Settings,
    *,
    need_windows: bool = True,
) -> tuple[list[FFN], Windows | None]:
    """Check the settings against the model and read the calibration text.

    Returns:
        The FFNs, and the windows of calibration tokens, or None unless `need_windows`.

    Raises:
        ValueError: see `pruning.prune`.
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
            raise ValueError(f"budget: expected layers of one width for {settings.budget!r}, got {widths}")
    if settings.repair == "bias" and not all(ffn.can_store_bias for ffn in ffns):
        raise ValueError(
            f"repair: expected 'sequential', 'lstsq' or 'none' for {type(model).__name__}, which cannot store a bias, "
            f"got 'bias'"
        )
    if settings.repair == "sequential" and any(p.dtype is torch.float64 for p in model.parameters()):
        raise ValueError(
            "model: expected weights of at most 32 bits for repair='sequential', got torch.float64; convert it with "
            "model.float() or --dtype float32, or use repair='lstsq'"
        )
    check_config(
        model,
        ffns,
        uniform_width(widths[-1], settings.ratio, settings.multiple_of),
        adds_bias=settings.repair == "bias" and ffns[0].output.bias is None,
    )
    if not need_windows:
        return ffns, None
    windows = calibration_windows(model, tokenizer, calibration, settings)
    if settings.repair == "sequential":
        with evaluation_mode(model):  # raises if a layer does not read the output of the one before
            Stream(model, ffns, [windows.sequences[0][None, :PROBE_TOKENS]])
    return ffns, windows


def warn_of_few_tokens(n_tokens: int, width: int, settings: Settings) -> None:
    """Warn, with the caller of `prune` as the location, if least squares has too few tokens."""
    n_keep = uniform_width(width, settings.ratio, settings.multiple_of)
    if settings.repair in ("lstsq", "sequential") and n_tokens < TOKENS_PER_NEURON * n_keep:
        warnings.warn(
            f"calibration: expected at least {TOKENS_PER_NEURON} tokens for each of the {n_keep} kept neurons of a "
            f"layer, got {n_tokens} tokens; least squares will fit noise",
            stacklevel=4,  # one for the decorator of `prune`
        )
