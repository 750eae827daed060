"""Many prunings of one model from one calibration: all that knows how a method is run."""

import copy
import time
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mikernels
from benchmarks.quality.methods import Method
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.tasks import spread
from pruning import Settings, prune, select
from pruning.capture import Statistics, capture
from pruning.families import FFN, find_ffns
from pruning.pipeline import rounded_width
from pruning.repair import complement, repair_projection
from pruning.surgery import prune_ffn, update_config

T = TypeVar("T")
Seconds = dict[str, float]

QUICK = {
    "criterion": ("pairwise-mi", "random-pairs", "flap", "wanda", "magnitude", "random"),
    "repair": ("none", "bias", "lstsq"),
    "budget": ("uniform",),
    "refine": (False,),
}
"""Settings that can do with statistics that were gathered before; with others `pruning.prune` does it all."""


class Calibrated:
    """A dense model and what it does on the calibration windows `[n, L]`, measured when first asked for.

    What is shared counts in the seconds of each method that needs it, as if it had been alone.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, *, seed: int = 0) -> None:
        self.model = model
        self.windows = windows
        self.seed = seed
        self._orders: dict[str, tuple[list[Tensor], Seconds]] = {}
        self._chosen: dict[tuple[str, float], tuple[list[Tensor], Seconds]] = {}

    def settings(self, method: Method, ratio: float) -> Settings:
        """Widths are not rounded, so that all methods drop the same number of neurons."""
        given: dict[str, Any] = {
            "multiple_of": 1,
            "calibration_tokens": self.windows.numel(),
            "sequence_length": self.windows.shape[1],
            "seed": self.seed,
        }
        return Settings(ratio=ratio, **given | dict(method.settings))

    def n_keep(self, ratio: float) -> int:
        return rounded_width(find_ffns(self.model)[0].width, Settings(ratio=ratio, multiple_of=1))

    def prune(self, method: Method, ratio: float) -> tuple[PreTrainedModel, Seconds]:
        """A pruned copy, and the seconds of each stage."""
        settings = self.settings(method, ratio)
        if method.rival is None:
            if not _quick(settings):
                return self._whole(settings)
            kept, seconds = self._kept(settings)
            return self._apply(kept, settings.repair, seconds)
        if method.refit:
            if (method.rival, ratio) not in self._chosen:
                self._rival(method, ratio)
            kept, seconds = self._chosen[method.rival, ratio]
            return self._apply(kept, settings.repair, seconds)
        return self._rival(method, ratio)

    @cached_property
    def _captured(self) -> tuple[list[Statistics], float]:
        settings = Settings()
        batches = self.windows.split(settings.batch_size)
        return clocked(
            lambda: capture(
                self.model,
                find_ffns(self.model),
                batches,
                sample_size=settings.sample_size,
                seed=self.seed,
            )
        )

    @cached_property
    def _mi(self) -> tuple[list[Tensor], float]:
        return clocked(
            lambda: [
                mikernels.mutual_information(s.sample, seed=self.seed).fill_diagonal_(0.0)
                for s in self._captured[0]
            ]
        )

    def _whole(self, settings: Settings) -> tuple[PreTrainedModel, Seconds]:
        model = copy.deepcopy(self.model)
        return model, prune(model, None, calibration=self.windows, settings=settings).seconds

    def _rival(self, method: Method, ratio: float) -> tuple[PreTrainedModel, Seconds]:
        model = copy.deepcopy(self.model)
        windows = spread(self.windows, method.windows or len(self.windows))
        rival = RIVALS[method.rival or ""]
        kept, seconds = clocked(lambda: rival.prune(model, windows, self.n_keep(ratio)))
        self._chosen[method.rival or "", ratio] = (kept, {"select": seconds})
        return model, {"select": seconds}

    def _kept(self, settings: Settings) -> tuple[list[Tensor], Seconds]:
        alone = settings.criterion == "random-pairs"  # it draws until enough have gone
        key = f"{settings.criterion} {settings.ratio if alone else ''}"
        if key not in self._orders:
            self._orders[key] = self._order(settings)
        orders, seconds = self._orders[key]
        width = find_ffns(self.model)[0].width
        n_drop = width - self.n_keep(settings.ratio)
        return [complement(order[:n_drop], width) for order in orders], seconds

    def _order(self, settings: Settings) -> tuple[list[Tensor], Seconds]:
        """The neurons of every layer, first to go first, chosen as `pruning.prune` chooses."""
        seconds: Seconds = {}
        ffns = find_ffns(self.model)
        if settings.criterion in ("random", "magnitude"):
            statistics: list[Any] = [None] * len(ffns)
        else:
            statistics, seconds["capture"] = self._captured
        shared: list[Any] = [None] * len(ffns)
        if settings.criterion in ("pairwise-mi", "random-pairs"):
            shared, seconds["mi"] = self._mi
        orders, seconds["select"] = clocked(
            lambda: [_order(*each, settings) for each in zip(ffns, statistics, shared, strict=True)]
        )
        return orders, seconds

    def _apply(self, kept: list[Tensor], repair: str, seconds: Seconds) -> tuple[PreTrainedModel, Seconds]:
        """A copy in which these neurons are left."""
        model = copy.deepcopy(self.model)
        ffns = find_ffns(model)
        statistics: list[Any] = [None] * len(ffns)
        if repair != "none":
            statistics, captured = self._captured
            seconds = seconds | {"capture": captured}

        def operate() -> None:
            for ffn, keep, gathered in zip(ffns, kept, statistics, strict=True):
                weight, bias = ffn.output.weight, ffn.output.bias
                intercept = repair == "bias" or bias is not None
                prune_ffn(
                    ffn,
                    keep,
                    repair_projection(weight, bias, keep, gathered, repair, intercept=intercept),  # type: ignore[arg-type]
                )
            update_config(model, ffns)

        _, spent = clocked(operate)
        return model, seconds | {"repair": spent}


def _quick(settings: Settings) -> bool:
    known = {f.name for f in fields(settings)}
    return settings.threshold is None and all(
        getattr(settings, name) in values for name, values in QUICK.items() if name in known
    )


def _order(ffn: FFN, statistics: Any, mi: Any, settings: Settings) -> Tensor:
    if settings.criterion == "random":
        return select.random_order(ffn.width, seed=settings.seed)
    if settings.criterion == "magnitude":
        return select.ascending(select.magnitude(ffn))
    if settings.criterion == "wanda":
        return select.ascending(select.wanda(ffn, statistics))
    saliency = select.fluctuation(ffn, statistics)
    if settings.criterion == "flap":
        return select.ascending(saliency)
    if settings.criterion == "pairwise-mi":
        return select.redundancy_saliency(mi, saliency)
    median = float(mi[torch.ones_like(mi, dtype=torch.bool).triu_(1)].median())
    n_drop = ffn.width - rounded_width(ffn.width, settings)
    return select.random_pairs(mi, n_drop, threshold=median, seed=settings.seed)


def clocked(run: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds that it took."""
    start = time.perf_counter()
    found = run()
    return found, time.perf_counter() - start
