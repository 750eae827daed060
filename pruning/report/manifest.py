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
from pruning.choose.picture import Picture
from pruning.observe.excerpts import Excerpt

SCHEMA = 1
"""Version of the entries of the manifest and of the pictures (docs/pruning.md); manifests without one are older."""


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
        excerpts: a few words of the calibration around the tokens in the pictures of the layers, by token.
    """

    settings: dict[str, Any]
    calibration_tokens: int
    layers: list[PrunedLayer]
    seconds: dict[str, float]
    candidates: dict[int, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    excerpts: dict[int, Excerpt] = field(default_factory=dict)

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
        """The report as JSON, without the pictures of the layers (`pictures`). In each layer, the lists under `dropped`
        are the columns of one table."""
        return json.dumps(self.document(), indent=1, allow_nan=False) + "\n"

    def document(self) -> dict[str, Any]:
        """What `manifest` is the text of."""
        document = {
            "schema": SCHEMA,
            "settings": self.settings,
            "calibration_tokens": self.calibration_tokens,
            "neurons": {"before": self.neurons_before, "after": self.neurons_after, "widths": self.widths},
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "peak_bytes": getattr(self.seconds, "peak_bytes", {}),
            "versions": versions(),
            "candidates": self.candidates,
            "files": self.files,
            **self.notes,
            "layers": [layer.as_json() for layer in self.layers],
        }
        plain: dict[str, Any] = plain_json(document)
        return plain

    def pictures(self) -> dict[str, Any]:
        """A closer look at the layers (`pruning.choose.picture`), in types that JSON has: the table of the map is its
        part above the diagonal, row by row."""
        layers = [
            {"name": layer.name} | _picture_json(layer.picture, self.excerpts)
            for layer in self.layers
            if layer.picture is not None
        ]
        plain: dict[str, Any] = plain_json({"schema": SCHEMA, "layers": layers})
        return plain


def _picture_json(picture: Picture, excerpts: Mapping[int, Excerpt]) -> dict[str, Any]:
    row, column = torch.triu_indices(len(picture.mi), len(picture.mi), offset=1)
    examples = [
        [
            {"token": token, "activation": _short(value)}
            | ({"excerpt": list(excerpts[token])} if token in excerpts else {})
            for token, value in zip(tokens, values, strict=True)
        ]
        for tokens, values in zip(picture.tokens.tolist(), picture.activation.tolist(), strict=True)
    ]
    return {
        "map": {
            "neurons": picture.shown,
            "mi_nats": [round(value, 4) for value in picture.mi[row, column].tolist()],
        },
        "damage": {"dropped": picture.steps, "share": [_short(x) for x in picture.damage.tolist()]},
        "redundant": {
            "neuron": picture.redundant,
            "p_value": [_short(x) for x in picture.p_value.tolist()],
            "excited_by": examples,
        },
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


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
