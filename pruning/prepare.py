"""Everything that can be checked before the first long step of a run."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mikernels.ranks import Ranks
from pruning.choose.budget import check_cap, kept_width
from pruning.choose.evidence_file import load_windows
from pruning.choose.explain import PrunedLayer
from pruning.choose.origin import calibration_identity, model_fingerprint
from pruning.choose.target import adds_bias, kept_widths, reach_target
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN, find_ffns, has_own_widths, knobs_of
from pruning.model.forward import body_of
from pruning.model.knobs import Knob, find_knobs
from pruning.model.layers import IN_MEMORY, Layers
from pruning.model.loaded import name_some
from pruning.model.saved import check_config
from pruning.observe.batches import Batch, Inputs, Windows, by_name
from pruning.observe.calibration import Calibration, calibration_windows
from pruning.observe.capture import MIN_TOKENS
from pruning.observe.mixture import default_sources
from pruning.observe.trial import check_neurons, reached_knobs
from pruning.repair.refine import check_alone
from pruning.repair.stream import check_stream
from pruning.report.manifest import versions
from pruning.settings import Settings

TOKENS_PER_NEURON = 4
"""Least squares needs at least this many calibration tokens per kept neuron; with fewer we warn."""
ROW_BYTES = 16
"""`torch._grouped_mm`, by which transformers multiplies experts, takes rows of a multiple of this."""
PROBE_TOKENS = 8
"""Tokens for trying the model out before the long steps."""


class Prepared(NamedTuple):
    """What a run works on.

    Attributes:
        ffns: to prune.
        windows: of calibration tokens, or None if none are needed.
        settings: with the repair that `"auto"` stands for, and the ratio that reaches a target.
        left: for config entries whose FFNs are not pruned, how many these are and why.
        n_ffns: of the whole model.
        follow: whether its layers can be run one by one.
    """

    ffns: list[FFN]
    windows: Windows | Inputs | None
    settings: Settings
    left: dict[str, str]
    n_ffns: int
    follow: bool


def calibration_or_default(
    calibration: Calibration,
    statistics: str | Path | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Calibration:
    """The calibration that was given, or the tokens that the statistics were measured on, or the default.

    Raises:
        ValueError: statistics that do not hold what they were measured on.
    """
    if calibration is not None:
        return calibration
    if statistics is None:
        return default_sources(model, tokenizer)
    windows = load_windows(statistics)
    if windows is None:
        raise ValueError(
            f"calibration: expected what {statistics} was measured on, which it does not hold, got none; "
            f"name the calibration, or measure again"
        )
    return windows


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Calibration,
    settings: Settings,
    source: Layers = IN_MEMORY,
    *,
    need_windows: bool = True,
    measured: Collection[str] | None = None,
    saved: Mapping[str, torch.dtype] | None = None,
) -> Prepared:
    """Check the settings against the model, read the calibration text, and try the model on a few tokens.

    The model's own samples, which take minutes, are not written here: other text stands in for them.

    Args:
        need_windows: whether to read the calibration.
        measured: names of the FFNs in a statistics file, if there is one: others are left.
        saved: the dtypes of weights in the result by name, where they differ from those of the model.

    Raises:
        ValueError: see `pruning.prune`.
    """
    every = find_ffns(model, in_memory=source.in_memory)
    ffns, left = chosen_ffns(model, every, settings)
    _check_widths(model, ffns, settings, saved)  # of all, before the text is read
    windows, probe = None, []
    if need_windows:
        windows = calibration_windows(model, tokenizer, calibration, settings, stand_in=True)
        probe = _probe(windows)
        body = body_of(model, by_name(probe[0]))
        with source.sample(body, ffns) as sampled:
            reached = reached_knobs(model, sampled, probe[0])
        ffns = _keep(ffns, reached, left, "which the calibration does not reach")
    if measured is not None:
        known = {ffn.knob for ffn in ffns if ffn.name in measured}
        ffns = _keep(ffns, known or set(knobs_of(ffns)), left, "which are not in the statistics")
    settings = check_shapes(model, ffns, settings, saved)
    follow = False
    if probe:
        with source.sample(body, ffns) as sampled:
            check_neurons(model, sampled, probe[0])
            if settings.refine:
                check_alone(model, sampled, probe[0])
            follow = _can_follow(
                model,
                sampled,
                probe,
                needed=not source.in_memory or settings.repair == "sequential" or settings.refine,
            )
    if settings.repair == "auto":
        settings = replace(settings, repair="sequential" if follow else "lstsq")
    return Prepared(ffns, windows, settings, left, len(every), follow)


def check_shapes(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    settings: Settings,
    saved: Mapping[str, torch.dtype] | None = None,
) -> Settings:
    """Check what needs only the settings and the shapes of the weights, which may be on the `meta` device.

    Args:
        ffns: that are pruned.
        saved: see `prepare`.

    Returns:
        The settings with the ratio that reaches a target.

    Raises:
        ValueError: see `pruning.prune`.
    """
    settings, kept = _check_widths(model, ffns, settings, saved)
    if settings.budget != "uniform":
        _check_budget(model, ffns, settings)
    check_config(model, ffns, kept, adds_bias=adds_bias(ffns, settings))
    _check_experts(model, ffns, kept, settings, saved or {})
    return settings


def layers_of(model: PreTrainedModel) -> Layers:
    """The layers of a model that was loaded, whose weights are in memory, or where accelerate has offloaded them.

    Raises:
        ValueError: see `pruning.model.ffn.find_ffns`; or what was offloaded cannot be replaced.
    """
    ffns = find_ffns(model, in_memory=False)
    parts = [projection.parameter for ffn in ffns for projection in ffn.projections]
    if not any(part.is_meta for part in (next(model.parameters()), *parts)):
        return IN_MEMORY
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        find_ffns(model)  # raises
    from pruning.model.offloaded import OffloadedLayers  # needs accelerate, which is there if its hooks are

    return OffloadedLayers(model, ffns)


def check_one_by_one(settings: Settings, how: str) -> None:
    """Raise for what needs all layers in memory, of a model that is pruned `how`.

    Raises:
        ValueError: a setting that does. The message names it.
    """
    for name, given, expected in (
        ("budget", settings.budget == "kl", "'uniform' or 'mi'"),
        ("candidates", settings.candidates > 1, "1"),
    ):
        if given:
            raise ValueError(
                f"{name}: expected {expected} for a model that is {how}, got {getattr(settings, name)!r}"
            )


def measures_all_first(settings: Settings, *, save_statistics: bool) -> bool:
    """Whether a run measures all layers before it prunes one, and keeps what it measured."""
    return settings.budget != "uniform" or settings.candidates > 1 or save_statistics


def run_identity(settings: Settings, windows: Windows | Inputs | None) -> dict[str, object]:
    """What determines the result of a run beside the weights, by name."""
    identity: dict[str, object] = asdict(settings) | versions()
    del identity["memory_budget"]  # so that a run that took too much memory may go on with less
    if windows is not None:
        identity["calibration"] = calibration_identity(windows, settings)["sha256"]
    return identity


def check_ranks(ranks: Ranks, model: PreTrainedModel, source: Layers, identity: Mapping[str, object]) -> None:
    """Raise unless all processes have the same identity of the run, and the same weights.

    Raises:
        ValueError: one differs. The message names what.
    """
    ranks.check_same({**identity, "model": source.fingerprint() or model_fingerprint(model)})


def check_share(ranks: Ranks, windows: Windows | Inputs | None) -> None:
    """Raise unless each process has a window of its own.

    Raises:
        ValueError: there are more processes.
    """
    if windows is not None and len(windows) < ranks.count:
        raise ValueError(
            f"process_group: expected at most as many processes as windows of calibration, {len(windows)}, got "
            f"{ranks.count}; use more tokens or fewer processes"
        )


def needed_tokens(kept: int, share: float) -> int:
    """How many calibration tokens least squares needs for an FFN of `kept` neurons that `share` of them reach."""
    return int(TOKENS_PER_NEURON * kept / share)


def warn_of_few_tokens(n_tokens: int, ffns: Sequence[FFN], settings: Settings) -> None:
    """Warn, with the caller of `prune` as the location, if least squares has too few tokens for an FFN, of which an
    expert sees only its share."""
    widths = ((kept_width(ffn, settings.ratio, settings), ffn.share) for ffn in ffns)
    needed, kept, share = max((needed_tokens(kept, share), kept, share) for kept, share in widths)
    if settings.repair in ("lstsq", "sequential") and n_tokens < needed:
        part = f", of which about {share * n_tokens:.0f} reach it" if share < 1 else ""
        warnings.warn(
            f"calibration: expected at least {TOKENS_PER_NEURON} tokens for each of the {kept} kept neurons of "
            f"{'an expert' if share < 1 else 'a layer'}, got {n_tokens} tokens{part}; least squares will fit noise; "
            f"use at least {needed} tokens",
            stacklevel=5,  # two for `prune` and its decorator
        )


def warn_of_unmeasured(layers: Sequence[PrunedLayer]) -> None:
    """Warn, with the caller of `prune` as the location, of experts that too few tokens reached."""
    few = [layer.name for layer in layers if not layer.is_measured]
    if few:
        warnings.warn(
            f"calibration: fewer than {MIN_TOKENS} tokens reached {name_some(few)}; their neurons were ranked by the "
            f"norms of their weights and not repaired; use more calibration tokens",
            stacklevel=5,
        )


def _check_widths(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    settings: Settings,
    saved: Mapping[str, torch.dtype] | None,
) -> tuple[Settings, list[int]]:
    """The part of `check_shapes` that does not ask which kinds of FFNs there are; also gives the widths.

    Raises:
        ValueError: see `pruning.prune`.
    """
    settings = reach_target(model, ffns, settings, saved)
    kept = kept_widths(ffns, settings.ratio, settings)  # raises if rounding keeps all or none
    narrowest = min(ffn.width for ffn in ffns)
    if settings.budget != "uniform":
        check_cap(narrowest, settings.ratio, settings)
    if settings.clusters > narrowest:
        raise ValueError(
            f"clusters: expected at most the {narrowest} neurons of a layer, got {settings.clusters}"
        )
    if settings.repair == "bias" and not all(ffn.can_store_bias for ffn in ffns):
        raise ValueError(
            f"repair: expected 'sequential', 'lstsq' or 'none' for {type(model).__name__}, which cannot store a bias, "
            f"got 'bias'"
        )
    return settings, kept


def _check_experts(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    kept: Sequence[int],
    settings: Settings,
    saved: Mapping[str, torch.dtype],
) -> None:
    """Raise unless transformers can multiply the experts that are left in groups, as by default: here, and where the
    result is loaded in the dtype that it is saved in.

    Raises:
        ValueError: the rows of their weights will not be multiples of `ROW_BYTES`.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for ffn, width in zip(ffns, kept, strict=True):
        own = ffn.output.parameter.dtype
        dtype = min(own, saved.get(names[id(ffn.output.parameter)], own), key=lambda dtype: dtype.itemsize)
        step = ROW_BYTES // dtype.itemsize
        if ffn.is_routed and width % step and not ffn.width % step:
            raise ValueError(
                f"multiple_of: expected a multiple of {step} for experts in "
                f"{str(dtype).removeprefix('torch.')}, such as {ffn.name}, which transformers multiplies in groups, "
                f"got {settings.multiple_of}, which keeps {width} neurons"
            )


def chosen_ffns(
    model: PreTrainedModel, ffns: list[FFN], settings: Settings
) -> tuple[list[FFN], dict[str, str]]:
    """The FFNs that the settings ask for, and why others are left."""
    left = dict(find_knobs(type(model), model.config).rejected)
    if settings.only is None:
        return ffns, left
    names = [str(knob) for knob in knobs_of(ffns)]
    chosen = [ffn for ffn in ffns if f"{ffn.knob}.".startswith(f"{settings.only}.")]
    if not chosen:
        raise ValueError(f"only: expected the beginning of one of {', '.join(names)}, got {settings.only!r}")
    return _keep(ffns, knobs_of(chosen), left, f"by only={settings.only!r}"), left


def _keep(ffns: list[FFN], knobs: Collection[Knob], left: dict[str, str], reason: str) -> list[FFN]:
    """The FFNs of the knobs; notes why others are left."""
    left |= {str(ffn.knob): f"{_count(ffns, ffn.knob)}, {reason}" for ffn in ffns if ffn.knob not in knobs}
    return [ffn for ffn in ffns if ffn.knob in knobs]


def _count(ffns: Sequence[FFN], knob: Knob) -> str:
    driven = [ffn for ffn in ffns if ffn.knob == knob]
    return f"{len(driven)} FFNs such as {driven[0].name}"


def _probe(windows: Windows | Inputs) -> list[Batch]:
    """Two batches to try the model on: of a few tokens each, the second ones in reverse, or of other inputs. They have
    padding if batches of the windows may have some."""
    if isinstance(windows, Inputs):
        return list(windows.batches[:2])
    first = windows.sequences[0][:PROBE_TOKENS]
    batch = [first]
    if len({len(sequence) for sequence in windows.sequences}) > 1:
        batch.append(first[: -(-len(first) // 2)])
    return replace(windows, sequences=[*batch, *(s.flip(0) for s in batch)]).split(len(batch))


def _can_follow(model: PreTrainedModel, ffns: Sequence[FFN], probe: Sequence[Batch], *, needed: bool) -> bool:
    """Whether the layers of the model can be run one by one.

    Raises:
        ValueError: they cannot, though that is needed.
    """
    try:
        with evaluation_mode(model):
            check_stream(model, ffns, probe)
    except (ValueError, TypeError, RuntimeError, AttributeError, LookupError):
        if needed:
            raise
        return False
    return True


def _check_budget(model: PreTrainedModel, ffns: Sequence[FFN], settings: Settings) -> None:
    knobs = knobs_of(ffns)
    if (
        not has_own_widths(model, knobs[0])
        or len(knobs) > 1
        or any(ffn.is_routed or ffn.scale != 1 for ffn in ffns)
    ):
        raise ValueError(
            f"budget: expected 'uniform' for a model with experts or FFNs of several kinds, got {settings.budget!r}"
        )
    widths = sorted({ffn.width for ffn in ffns})
    if len(widths) > 1:
        raise ValueError(f"budget: expected layers of one width for {settings.budget!r}, got {widths}")
