"""The methods under comparison, as data: fields of `pruning.Settings`, or the method of another package."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.tasks import evenly_spaced
from pruning.model.ffn import find_ffns
from pruning.settings import Settings

GROUPS = ("no repair", "own repair", "least squares", "sequential", "refined")
SLOW_TOKENS = 32 * 512  # calibration tokens of methods that would be too slow on all of them


@dataclass(frozen=True)
class Method:
    """A way to prune."""

    name: str  # in rows and on the command line
    label: str  # in tables, within the group
    group: str  # how the loss is repaired
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `pruning.Settings`, without the ratio
    rival: str | None = None  # key of `RIVALS`
    refit: bool = False  # take only the rival's choice of neurons, and repair with `settings`
    tokens: int | None = None  # maximum number of calibration tokens
    more: bool = False  # the repair sees `Task.more`, while the choice is made on the usual windows

    @property
    def notable(self) -> bool:
        """Whether it is shown in the plot and in the summary."""
        return self.name in NOTABLE

    def windows(self, calibration: Tensor) -> Tensor:
        """The part of the calibration windows `[n, L]` that this method gets."""
        count = len(calibration) if self.tokens is None else max(1, self.tokens // calibration.shape[1])
        return evenly_spaced(calibration, count)

    def obstacle(self, model: PreTrainedModel) -> str | None:
        """Why it cannot run here or on this model, or None."""
        if self.rival is not None:
            rival = RIVALS[self.rival]
            return rival.missing() or rival.obstacle(model)
        if reason := unknown_setting(self.settings):
            return reason
        if self.settings.get("repair") == "bias" and not all(f.can_store_bias for f in find_ffns(model)):
            return f"{type(model).__name__} cannot store a bias"
        return None


def unknown_setting(settings: Mapping[str, Any]) -> str | None:
    """The first setting that this version of `pruning.Settings` does not know, in words, or None."""
    known = {f.name for f in fields(Settings)}
    types = get_type_hints(Settings)
    for name, value in settings.items():
        if name not in known:
            return f"pruning.Settings has no {name}"
        options = get_args(types[name])
        literal = options and all(isinstance(option, str) for option in options)
        if literal and value not in options:
            return f"pruning.Settings does not accept {name}={value!r}"
    return None


CRITERIA = {
    "random": "random",
    "magnitude": "weight magnitude",
    "random-pairs": "random pairs by MI (the paper's)",
    "pairwise-mi": "pairwise MI",
    "wanda": "Wanda",
    "flap": "FLAP",
    "conditional-mi": "conditional MI",
}
REPAIRS = {"none": "no repair", "lstsq": "least squares"}
"""Repairs that every criterion can have, with their groups."""

NOTABLE = (
    "flap, none",
    "flap, bias",
    "flap, lstsq",
    "random-pairs, none",
    "conditional-mi, lstsq",
    "conditional-mi, sequential",
    "conditional-mi, sequential, kl",
    "conditional-mi, sequential, kl, threefold text",
    "conditional-mi, refined, threefold text",
    "conditional-mi, sequential, kl, refined, threefold text",
    "torch-pruning-taylor",
    "optipfair-maw",
    "fmchisel-osscar-1e-4",
)

LSTSQ = {"repair": "lstsq"}
SEQUENTIAL = {"repair": "sequential"}
REFINED = {"repair": "sequential", "refine": True}


def _criteria() -> list[Method]:
    """Every criterion with every common repair, to isolate the effect of the criterion."""
    return [
        Method(f"{criterion}, {repair}", label, group, {"criterion": criterion, "repair": repair})
        for repair, group in REPAIRS.items()
        for criterion, label in CRITERIA.items()
    ]


def _rivals() -> list[Method]:
    """Every rival, and our least squares on the neurons that it keeps."""
    methods = []
    for name, rival in RIVALS.items():
        tokens = SLOW_TOKENS if rival.slow else None
        group = "own repair" if rival.repairs else "no repair"
        own = Method(name, rival.label, group, rival=name, tokens=tokens)
        refit = replace(own, name=f"{name}, lstsq", group="least squares", settings=LSTSQ, refit=True)
        methods += [own, refit]
    return methods


def _recipes() -> list[Method]:
    """What `pruning` offers beyond a criterion: its order of layers, budgets and refinement."""
    searched = "random pairs within 8 clusters, best of 4 by KL (the paper's)"
    methods = [
        Method(
            f"random-pairs, {repair}, clusters, best of 4",
            searched,
            group,
            {"criterion": "random-pairs", "repair": repair, "clusters": 8, "candidates": 4},
        )
        for repair, group in REPAIRS.items()
    ]
    methods.append(Method("flap, bias", "FLAP", "own repair", {"criterion": "flap", "repair": "bias"}))
    for group, repair, criteria in (
        ("sequential", SEQUENTIAL, ("random", "flap", "conditional-mi")),
        ("refined", REFINED, ("flap", "conditional-mi")),
    ):
        methods += [Method(f"{c}, {group}", CRITERIA[c], group, {"criterion": c} | repair) for c in criteria]
    for budget, label in (
        ("mi", "conditional MI, budgets by MI"),
        ("kl", "conditional MI, budgets by KL"),
    ):
        for name, group, repair in (
            ("conditional-mi, lstsq, {}", "least squares", LSTSQ),
            ("conditional-mi, sequential, {}", "sequential", SEQUENTIAL),
            ("conditional-mi, sequential, {}, refined", "refined", REFINED),
        ):
            settings = {"criterion": "conditional-mi", "budget": budget} | repair
            methods.append(Method(name.format(budget), label, group, settings))
    methods += [
        replace(m, name=f"{m.name}, threefold text", label=f"{m.label}, threefold text", more=True)
        for m in methods
        if m.name == "conditional-mi, refined" or m.name.startswith("conditional-mi, sequential, kl")
    ]
    return methods


METHODS = {m.name: m for m in (*_criteria(), *_recipes(), *_rivals())}
"""By name; a refit follows its rival, which then runs once for both."""
