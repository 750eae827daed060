"""Many prunings of one model from one calibration: all that knows how a method is run."""

import copy
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.quality.methods import Method
from benchmarks.quality.rivals import RIVALS
from pruning import Settings, prune
from pruning.choose.budget import uniform_width
from pruning.choose.evidence import gather_evidence
from pruning.choose.evidence_file import load_evidence, save_evidence
from pruning.choose.sensitivity import with_divergence
from pruning.model.families import find_ffns
from pruning.model.surgery import update_config
from pruning.observe.calibration import comparison_batches
from pruning.observe.capture import Statistics
from pruning.repair.separate import prune_separately

T = TypeVar("T")
Seconds = dict[str, float]
MADE: Any = {"estimator": Settings().estimator, "nodes": Settings().nodes}
"""What mutual information is measured with."""


class Calibrated:
    """A dense model and what it does on the calibration windows `[n, L]`, measured when first asked for.

    What is shared counts in the seconds of each method that needs it, as if it had been alone. Repairs of the
    `more` methods see the windows of `more` instead, by default the same.
    """

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, *, more: Tensor | None = None, seed: int = 0
    ) -> None:
        self.model = model
        self.windows = windows
        self.more = windows if more is None else more
        self.seed = seed
        self._folder = tempfile.TemporaryDirectory()
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

    def prune(self, method: Method, ratio: float) -> tuple[PreTrainedModel, Seconds]:
        """A pruned copy, and the seconds of each stage."""
        if method.rival is None:
            return self._ours(self.settings(method, ratio), self.more if method.more else self.windows)
        if not method.refit:
            return self._rival(method, ratio)
        if (method.rival, ratio) not in self._chosen:
            self._rival(method, ratio)
        return self._refit(*self._chosen[method.rival, ratio])

    @cached_property
    def _evidence(self) -> tuple[list[Statistics], Path, Seconds]:
        """Of every FFN; all of it in a file, from which `pruning.prune` takes it."""
        settings = Settings(seed=self.seed)
        ffns = find_ffns(self.model)
        batches = self.windows.split(settings.batch_size)
        seconds: Seconds = {}
        evidence = gather_evidence(self.model, ffns, batches, settings, seconds=seconds)
        path = Path(self._folder.name) / "evidence.safetensors"
        save_evidence(evidence, path, **MADE)
        return [layer.statistics for layer in evidence], path, seconds

    @cached_property
    def _sensitivity(self) -> Seconds:
        """Of the model to each FFN; it goes into the file as well."""
        _, path, _ = self._evidence
        ffns = find_ffns(self.model)
        some = comparison_batches(self.windows, Settings().batch_size)
        known = load_evidence(path, ffns, **MADE)
        evidence, spent = clocked(lambda: with_divergence(self.model, ffns, known, some))
        save_evidence(evidence, path, **MADE)
        return {"sensitivity": spent}

    def _ours(self, settings: Settings, windows: Tensor) -> tuple[PreTrainedModel, Seconds]:
        model = copy.deepcopy(self.model)
        _, path, seconds = self._evidence
        if settings.budget == "kl":
            seconds = seconds | self._sensitivity
        report = prune(model, None, calibration=windows, statistics=path, settings=settings)
        return model, {k: s for k, s in seconds.items() if k in _needed(settings)} | report.seconds

    def _rival(self, method: Method, ratio: float) -> tuple[PreTrainedModel, Seconds]:
        model = copy.deepcopy(self.model)
        name = method.rival or ""
        n_keep = uniform_width(find_ffns(model)[0].width, ratio, 1)
        kept, seconds = clocked(lambda: RIVALS[name].prune(model, method.windows(self.windows), n_keep))
        self._chosen[name, ratio] = (kept, {"rival": seconds})
        return model, {"rival": seconds}

    def _refit(self, kept: list[Tensor], seconds: Seconds) -> tuple[PreTrainedModel, Seconds]:
        """A copy in which these neurons are left, with our least squares."""
        model = copy.deepcopy(self.model)
        ffns = find_ffns(model)
        statistics, _, shared = self._evidence
        _, spent = clocked(lambda: prune_separately(ffns, kept, statistics, "lstsq"))
        update_config(model, ffns)
        return model, seconds | {"capture": shared["capture"], "repair": spent}


def _needed(settings: Settings) -> set[str]:
    """The shared stages that these settings use the results of."""
    needed = set()
    if settings.criterion not in ("random", "magnitude") or settings.repair in ("bias", "lstsq"):
        needed.add("capture")
    if (
        settings.criterion in ("conditional-mi", "pairwise-mi", "random-pairs")
        or settings.budget != "uniform"
    ):
        needed |= {"capture", "measure"}
    if settings.budget == "kl":
        needed.add("sensitivity")
    return needed


def clocked(run: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds that it took."""
    start = time.perf_counter()
    found = run()
    return found, time.perf_counter() - start
