"""What was done to a model and why, for machines (the manifest) and for people (the table)."""

import json
import math
import platform
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

import mikernels

MANIFEST = "mi_prune.json"


@dataclass(frozen=True)
class Layer:
    """One pruned FFN.

    Attributes:
        name: of the block within the model.
        kept: `[kept]` indices of the neurons that stay, ascending; their order in the pruned model.
        dropped: `[dropped]` indices of the others, ascending. The fields below are theirs, in this order.
        partner: the kept neuron with which each shares most information.
        mi: that mutual information, nats.
        linear_r2: share of the variance that a linear map of all kept neurons predicts.
        saliency: what the criterion weighs, or FLAP's fluctuation where it weighs nothing.
        median_mi: over all pairs of the dense layer, nats.
        null_mi: what a pair of independent neurons exceeds with probability 0.001 at this sample size, nats.
        sensitivity: of the model to this layer, which decided its width; 1 where all have the same.
    """

    name: str
    kept: Tensor
    dropped: Tensor
    partner: Tensor
    mi: Tensor
    linear_r2: Tensor
    saliency: Tensor
    median_mi: float
    null_mi: float
    sensitivity: float

    def as_json(self) -> dict[str, Any]:
        columns = {
            "neuron": self.dropped.tolist(),
            "partner": self.partner.tolist(),
            "mi_nats": _rounded(self.mi),
            "linear_r2": _rounded(self.linear_r2),
            "saliency": _rounded(self.saliency),
        }
        return {
            "name": self.name,
            "median_mi_nats": round(self.median_mi, 6),
            "null_mi_nats": round(self.null_mi, 6),
            "sensitivity": float(f"{self.sensitivity:.6g}"),
            "kept": self.kept.tolist(),
            "dropped": columns,
        }


@dataclass
class Report:
    """Everything about one pruning run.

    Attributes:
        settings: the arguments of `prune`.
        calibration_tokens: tokens that the statistics come from.
        layers: in the order of the model.
        seconds: of each stage.
        candidates: by seed, how far the model that it gives is from the dense one (`pruning.observe.divergence`), the
            least of which was taken; empty where there was nothing to choose between.
        notes: further entries for the manifest, such as an evaluation.
    """

    settings: dict[str, Any]
    calibration_tokens: int
    layers: list[Layer]
    seconds: dict[str, float]
    candidates: dict[int, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def widths(self) -> list[int]:
        """Neurons that stay in each FFN."""
        return [len(layer.kept) for layer in self.layers]

    @property
    def neurons_before(self) -> int:
        return self.neurons_after + sum(len(layer.dropped) for layer in self.layers)

    @property
    def neurons_after(self) -> int:
        return sum(self.widths)

    def manifest(self) -> str:
        """The report as JSON; per layer, the columns under `dropped` belong together entry by entry."""
        document = {
            "settings": self.settings,
            "calibration_tokens": self.calibration_tokens,
            "neurons": {"before": self.neurons_before, "after": self.neurons_after, "widths": self.widths},
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "versions": versions(),
            "candidates": self.candidates,
            **self.notes,
            "layers": [layer.as_json() for layer in self.layers],
        }
        return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    return {
        "mikernels": mikernels.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (header, tuple("-" * w for w in widths), *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _finite(value: Any) -> Any:
    """The same with None for every NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
