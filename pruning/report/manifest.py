"""The report of a pruning run, and the manifest that stores it."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

import mikernels
from pruning.choose.explain import PrunedLayer


@dataclass
class Report:
    """What one pruning run did and why.

    Attributes:
        settings: the options of `prune`.
        calibration_tokens: number of tokens behind the statistics.
        layers: in the order of the model.
        seconds: of each stage.
        candidates: the divergence of each candidate's model from the dense one (`pruning.observe.divergence`), by
            seed; the least one was used. Empty if there was one candidate.
        notes: further entries for the manifest, such as an evaluation.
        files: of the saved result, relative to its folder; empty before it is saved.
    """

    settings: dict[str, Any]
    calibration_tokens: int
    layers: list[PrunedLayer]
    seconds: dict[str, float]
    candidates: dict[int, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def widths(self) -> list[int]:
        """Number of kept neurons of each FFN."""
        return [len(layer.kept) for layer in self.layers]

    @property
    def neurons_before(self) -> int:
        return self.neurons_after + sum(len(layer.dropped) for layer in self.layers)

    @property
    def neurons_after(self) -> int:
        return sum(self.widths)

    def manifest(self) -> str:
        """The report as JSON. In each layer, the lists under `dropped` are the columns of one table."""
        document = {
            "settings": self.settings,
            "calibration_tokens": self.calibration_tokens,
            "neurons": {"before": self.neurons_before, "after": self.neurons_after, "widths": self.widths},
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "versions": versions(),
            "candidates": self.candidates,
            "files": self.files,
            **self.notes,
            "layers": [layer.as_json() for layer in self.layers],
        }
        return json.dumps(plain_json(document), indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Versions of the packages that determine the result."""
    return {
        "mikernels": mikernels.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def plain_json(value: Any) -> Any:
    """The value in types that JSON has: lists for tuples, arrays and tensors, text for what has no JSON form, such as
    paths and dtypes, and None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return plain_json(value.tolist()) if hasattr(value, "tolist") else str(value)
