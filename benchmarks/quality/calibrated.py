"""Many prunings of one model from one calibration; the only module that knows how a method is run."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.quality.methods import Method
from benchmarks.quality.rivals import RIVALS
from benchmarks.record import timed
from pruning import Settings, prune
from pruning.choose.budget import uniform_width
from pruning.choose.evidence import Evidence, gather_evidence
from pruning.choose.evidence_file import load_evidence, save_evidence
from pruning.choose.origin import Origin, estimator_name, model_fingerprint
from pruning.choose.sensitivity import halved_divergences
from pruning.model.ffn import find_ffns
from pruning.model.surgery import update_config
from pruning.observe.batches import Inputs, Windows
from pruning.observe.calibration import comparison_batches
from pruning.observe.capture import Statistics
from pruning.repair.separate import prune_separately

Seconds = dict[str, float]  # by stage
ESTIMATE: Any = {"estimator": Settings().estimator, "nodes": Settings().nodes}
"""How mutual information is measured."""
ESTIMATOR = estimator_name(**ESTIMATE)


class Observation(NamedTuple):
    """Statistics and evidence of every FFN, and the seconds that they took."""

    statistics: list[Statistics]
    evidence: list[Evidence]
    seconds: Seconds


def observe(model: PreTrainedModel, windows: Tensor | Inputs, settings: Settings) -> Observation:
    """Capture the activations of every FFN on windows `[n, L]` or batches, and measure each FFN in turn."""
    batches = windows.split(settings.batch_size)
    seconds: Seconds = {}
    evidence = list(gather_evidence(model, find_ffns(model), batches, settings, seconds=seconds))
    return Observation([ffn.statistics for ffn in evidence], evidence, seconds)


def add_divergence(
    model: PreTrainedModel, evidence: Sequence[Evidence], windows: Tensor
) -> tuple[list[Evidence], Seconds]:
    """Evidence with the divergence of the model when each layer alone is halved, on a few of the windows."""
    batches = comparison_batches(windows, Settings().batch_size)
    found, seconds = timed(lambda: halved_divergences(model, find_ffns(model), evidence, batches))
    with_divergence = [replace(e, divergence=d) for e, d in zip(evidence, found, strict=True)]
    return with_divergence, {"sensitivity": seconds}


class Calibrated:
    """A dense model and its observation on the calibration windows `[n, L]`, made when first needed.

    The calibration may be batches of padded sequences instead, which rivals do not read.

    Shared stages count in the seconds of each method that needs them, as if that method had run alone. Repairs of
    methods with `more` see the windows `more` instead.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: Tensor | Inputs,
        *,
        more: Tensor | None = None,
        seed: int = 0,
        sample_size: int = Settings().sample_size,
    ) -> None:
        self.model = model
        self.windows = windows
        self.more = windows if more is None else more
        self.seed = seed
        self.sample_size = sample_size
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "evidence.safetensors"
        self._kept_by_rival: dict[tuple[str, float], tuple[list[Tensor], Seconds]] = {}

    def settings(self, method: Method, ratio: float) -> Settings:
        """Settings without rounding of widths, so that all methods drop the same number of neurons."""
        windows = self.windows if isinstance(self.windows, Inputs) else Windows(list(self.windows))
        common: dict[str, Any] = {
            "multiple_of": 1,
            "calibration_tokens": windows.n_tokens,
            "sequence_length": windows.longest,
            "seed": self.seed,
            "sample_size": self.sample_size,
        }
        return Settings(ratio=ratio, **common | dict(method.settings))

    def prune(self, method: Method, ratio: float) -> tuple[PreTrainedModel, Seconds]:
        """A pruned copy, and the seconds of each stage."""
        if method.rival is None:
            return self._prune_ours(self.settings(method, ratio), self.more if method.more else self.windows)
        if not method.refit:
            return self._prune_rival(method, ratio)
        if (method.rival, ratio) not in self._kept_by_rival:
            self._prune_rival(method, ratio)
        return self._refit(*self._kept_by_rival[method.rival, ratio])

    @cached_property
    def _observed(self) -> tuple[list[Statistics], Seconds]:
        """Statistics of every FFN; the evidence is written to a file, from which `pruning.prune` reads it."""
        statistics, evidence, seconds = observe(
            self.model, self.windows, Settings(seed=self.seed, sample_size=self.sample_size)
        )
        save_evidence(evidence, self._path, self._origin)
        return statistics, seconds

    @cached_property
    def _origin(self) -> Origin:
        """Without the identity of the windows, because repairs of methods with `more` see others."""
        return Origin(ESTIMATOR, model_fingerprint(self.model))

    @cached_property
    def _sensitivity(self) -> Seconds:
        """Add the divergence of each FFN to the file of evidence."""
        evidence = load_evidence(
            self._path, find_ffns(self.model), estimator=ESTIMATOR, model=self._origin.model
        )
        evidence, seconds = add_divergence(self.model, evidence, self.windows)
        save_evidence(evidence, self._path, self._origin)
        return seconds

    def _prune_ours(self, settings: Settings, windows: Tensor | Inputs) -> tuple[PreTrainedModel, Seconds]:
        model = copy.deepcopy(self.model)
        _, seconds = self._observed
        if settings.budget == "kl":
            seconds = seconds | self._sensitivity
        report = prune(model, None, calibration=windows, statistics=self._path, settings=settings)
        shared = _shared_stages(settings)
        return model, {stage: s for stage, s in seconds.items() if stage in shared} | report.seconds

    def _prune_rival(self, method: Method, ratio: float) -> tuple[PreTrainedModel, Seconds]:
        model = copy.deepcopy(self.model)
        n_keep = uniform_width(find_ffns(model)[0].width, ratio, 1)
        windows = method.windows(self.windows)
        kept, spent = timed(lambda: RIVALS[method.rival].prune(model, windows, n_keep))
        seconds = {"rival": spent}
        self._kept_by_rival[method.rival, ratio] = kept, seconds
        return model, seconds

    def _refit(self, kept: list[Tensor], seconds: Seconds) -> tuple[PreTrainedModel, Seconds]:
        """A copy with these neurons kept, repaired by our least squares."""
        model = copy.deepcopy(self.model)
        ffns = find_ffns(model)
        statistics, shared = self._observed
        _, spent = timed(lambda: prune_separately(ffns, kept, statistics, "lstsq"))
        update_config(model, ffns)
        return model, seconds | {"capture": shared["capture"], "repair": spent}


def _shared_stages(settings: Settings) -> set[str]:
    """The shared stages whose results these settings use."""
    stages = set()
    if settings.criterion not in ("random", "magnitude") or settings.repair in ("bias", "lstsq"):
        stages.add("capture")
    if (
        settings.criterion in ("conditional-mi", "pairwise-mi", "random-pairs")
        or settings.budget != "uniform"
    ):
        stages |= {"capture", "measure"}
    if settings.budget == "kl":
        stages.add("sensitivity")
    return stages
