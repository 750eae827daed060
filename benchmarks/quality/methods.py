"""The methods that are compared, as data: fields of `pruning.Settings`, or the name of another package's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.tasks import spread
from pruning.model.families import find_ffns
from pruning.settings import Settings

GROUPS = ("no repair", "own repair", "least squares", "sequential", "refined")
SLOW_TOKENS = 32 * 512
"""Of calibration for what would take too long on all of them."""


@dataclass(frozen=True)
class Method:
    """A way to prune.

    Attributes:
        name: what rows and `--methods` call it.
        label: what tables call it, within its group.
        group: what is done about the loss.
        settings: for `pruning.prune`, without the ratio.
        rival: of `RIVALS`; None for ours.
        refit: takes only the rival's choice of neurons; `settings` say what is done about the loss.
        tokens: at most so many of calibration.
        more: the repair sees the larger part of the text (`Task.more`); what it starts from is that of all
            methods.
        notable: has a line in the plot.
    """

    name: str
    label: str
    group: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rival: str | None = None
    refit: bool = False
    tokens: int | None = None
    more: bool = False
    notable: bool = False

    def windows(self, calibration: Tensor) -> Tensor:
        """Those of the windows `[n, L]` that it is given."""
        count = len(calibration) if self.tokens is None else max(1, self.tokens // calibration.shape[1])
        return spread(calibration, count)

    def unfit(self, model: PreTrainedModel) -> str | None:
        """Why it cannot run here or on this model, if so."""
        if self.rival is not None:
            rival = RIVALS[self.rival]
            return rival.missing() or rival.unfit(model)
        if reason := unknown_setting(self.settings):
            return reason
        if self.settings.get("repair") == "bias" and not all(f.can_store_bias for f in find_ffns(model)):
            return f"{type(model).__name__} cannot store a bias"
        return None


def unknown_setting(settings: Mapping[str, Any]) -> str | None:
    """What of it this version of `pruning.Settings` does not know, if so."""
    known = {f.name for f in fields(Settings)}
    types = get_type_hints(Settings)
    for name, value in settings.items():
        if name not in known:
            return f"pruning.Settings has no {name}"
        options = get_args(types[name])
        literal = options and all(isinstance(option, str) for option in options)
        if literal and value not in options:
            return f"pruning.Settings knows no {name}={value!r}"
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

OTHERS = {
    "torch-pruning-magnitude": "Torch-Pruning, magnitude",
    "torch-pruning-activation": "Torch-Pruning, activation",
    "torch-pruning-taylor": "Torch-Pruning, Taylor",
    "optipfair-maw": "OptiPFair, MAW",
    "optipfair-vow": "OptiPFair, VOW",
    "optipfair-pon": "OptiPFair, PON",
    "optipfair-l2": "OptiPFair, L2",
    "optipfair-maw-calibrated": "OptiPFair, MAW with activations",
    "fmchisel-osscar": "OSSCAR (fmchisel)",
    "fmchisel-osscar-1e-4": "OSSCAR (fmchisel), damping 1e-4",
}
SLOW = ("fmchisel-osscar", "fmchisel-osscar-1e-4", "torch-pruning-taylor")
NOTABLE = (
    "flap, none",
    "flap, bias",
    "flap, lstsq",
    "random-pairs, none",
    "conditional-mi, lstsq",
    "conditional-mi, sequential",
    "conditional-mi, sequential, kl",
    "conditional-mi, sequential, kl, threefold text",
    "conditional-mi, sequential, kl, refined, threefold text",
    "torch-pruning-taylor",
    "optipfair-maw",
    "fmchisel-osscar-1e-4",
)


def _ours(name: str, label: str, group: str, **settings: Any) -> Method:
    return Method(name, label, group, settings, notable=name in NOTABLE)


def _criteria() -> list[Method]:
    """Every criterion with every repair that all of them can have, so that the criterion is isolated."""
    return [
        _ours(f"{criterion}, {repair}", label, group, criterion=criterion, repair=repair)
        for repair, group in REPAIRS.items()
        for criterion, label in CRITERIA.items()
    ]


def _rivals() -> list[Method]:
    found = []
    for rival, label in OTHERS.items():
        tokens = SLOW_TOKENS if rival in SLOW else None
        own = "own repair" if "osscar" in rival else "no repair"
        found.append(Method(rival, label, own, {}, rival, tokens=tokens, notable=rival in NOTABLE))
        settings = {"repair": "lstsq"}
        found.append(Method(f"{rival}, lstsq", label, "least squares", settings, rival, True, tokens))
    return found


def _recipes() -> list[Method]:
    """What ours adds to a criterion: the order of layers, budgets, refining."""
    conditional: dict[str, Any] = {"criterion": "conditional-mi"}
    found = [
        *(
            _ours(
                f"random-pairs, {repair}, clusters, best of 4",
                "random pairs within 8 clusters, best of 4 by KL (the paper's)",
                group,
                criterion="random-pairs",
                repair=repair,
                clusters=8,
                candidates=4,
            )
            for repair, group in REPAIRS.items()
        ),
        _ours("flap, bias", "FLAP", "own repair", criterion="flap", repair="bias"),
        *(
            _ours(f"{c}, sequential", CRITERIA[c], "sequential", criterion=c, repair="sequential")
            for c in ("random", "flap", "conditional-mi")
        ),
        _ours("flap, refined", "FLAP", "refined", criterion="flap", repair="sequential", refine=True),
        _ours(
            "conditional-mi, refined",
            "conditional MI",
            "refined",
            **conditional,
            repair="sequential",
            refine=True,
        ),
    ]
    for budget, said in (("mi", "budgets by MI"), ("kl", "budgets by KL")):
        label = f"conditional MI, {said}"
        name = f"conditional-mi, {{}}, {budget}"
        settings = conditional | {"budget": budget}
        found += [
            _ours(name.format("lstsq"), label, "least squares", **settings, repair="lstsq"),
            _ours(name.format("sequential"), label, "sequential", **settings, repair="sequential"),
            _ours(
                name.format("sequential") + ", refined",
                label,
                "refined",
                **settings,
                repair="sequential",
                refine=True,
            ),
        ]
    found += [
        replace(
            method, name=name, label=f"{method.label}, threefold text", more=True, notable=name in NOTABLE
        )
        for method in found
        for name in (f"{method.name}, threefold text",)
        if method.name.startswith("conditional-mi, sequential, kl")
    ]
    return found


METHODS = {m.name: m for m in (*_criteria(), *_recipes(), *_rivals())}
"""By name; a rival's choice with our repair follows the rival itself, which then runs once for both."""
