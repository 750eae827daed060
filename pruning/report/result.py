"""What a saved result holds, for the report: the manifest and the pictures of its layers, read and put in order."""

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pruning.model.output_folder import MANIFEST, PICTURES
from pruning.report.comparison import growth_of
from pruning.report.manifest import SCHEMA, Report


@dataclass(frozen=True)
class Neuron:
    """A dropped neuron, and why.

    Attributes:
        neuron, partner: it, and the kept neuron with which it shares most.
        mi: that mutual information, nats.
        p_value: of it.
        r2: share of its variance that the kept neurons predict.
        excited_by: tokens that excite it most: its value there, and the text before, at and behind each, if kept.
    """

    neuron: int
    partner: int
    mi: float
    p_value: float
    r2: float
    excited_by: list[tuple[float, list[str]]]


@dataclass(frozen=True)
class Layer:
    """One FFN. Numbers that were not measured are NaN, and lists empty.

    Attributes:
        name: of the block within the model.
        n_kept, n_neurons: now, and before.
        sensitivity, median_mi, null_mi, repair_error: see `pruning.choose.explain.PrunedLayer`; the uniform budget
            measures no sensitivity.
        predicted: share of the variance that the kept neurons predict, mean of the dropped ones.
        shown, mi, is_dropped: `[m]` the neurons of the map, `[m][m]` their MI in nats, and whether each was dropped.
        steps, damage: the curve of the damage.
        redundant: the most redundant neurons.
    """

    name: str
    n_kept: int
    n_neurons: int
    sensitivity: float
    median_mi: float
    null_mi: float
    predicted: float
    repair_error: float
    shown: list[int]
    mi: list[list[float]]
    is_dropped: list[bool]
    steps: list[int]
    damage: list[float]
    redundant: list[Neuron]

    @property
    def kept_share(self) -> float:
        return self.n_kept / self.n_neurons


@dataclass(frozen=True)
class Quality:
    """Of the pruned model on one text: a perplexity relative to the dense one, or the cosine of hidden states; NaN for
    the other.

    Attributes:
        text: its name.
        is_near: whether the model was calibrated on text of this kind.
        growth: perplexity, pruned / dense; infinite if one overflows or is NaN.
        error: standard error of the logarithm of that.
        dense, pruned: perplexities.
        cosine: of the last hidden states, mean.
    """

    text: str
    is_near: bool
    growth: float
    error: float
    dense: float
    pruned: float
    cosine: float


@dataclass(frozen=True)
class Result:
    """One pruned model.

    Attributes:
        label: what the user calls it.
        manifest: as it is saved.
        layers: in the order of the model.
        quality: on each text that it was evaluated on.
    """

    label: str
    manifest: Mapping[str, Any]
    layers: list[Layer]
    quality: list[Quality] = field(default_factory=list)

    @property
    def n_before(self) -> int:
        return sum(layer.n_neurons for layer in self.layers)

    @property
    def n_after(self) -> int:
        return sum(layer.n_kept for layer in self.layers)

    @property
    def dropped_share(self) -> float:
        return 1 - self.n_after / self.n_before

    @property
    def speed(self) -> float:
        """Tokens per second of the pruned model relative to the dense one; NaN if not measured."""
        return number(entry(self.manifest, "evaluation", "tokens_per_second_ratio", "median"))

    def change(self, name: str) -> tuple[float, float]:
        """`parameters` or `weight_bytes` before and after; NaN if not recorded."""
        found = entry(self.manifest, name)
        return number(entry(found, "before")), number(entry(found, "after"))


def load_result(source: Report | str | Path, *, text: bool = True) -> Result:
    """Read a result.

    Args:
        source: the report of a run, or the folder of a result.
        text: whether to read the excerpts of the calibration.

    Raises:
        OSError: no such folder, or no manifest in it.
        ValueError: not a manifest, or one of a later version.
    """
    if isinstance(source, Report):
        model = source.notes.get("model") or "the model"
        return _parse(str(model), source.document(), source.pictures(), text=text)
    folder = Path(source)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder}: expected the folder of a result, with {MANIFEST}, got none")
    pictures: Any = {}
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (folder / PICTURES).is_file():
            pictures = json.loads(gzip.decompress((folder / PICTURES).read_bytes()))
        return _parse(str(source), manifest, pictures, text=text)
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{folder}: expected a result of mi-prune, got one that cannot be read: {error}"
        ) from error


def number(value: Any) -> float:
    """A number of a manifest, in which NaN is null."""
    return math.nan if value is None else float(value)


def entry(document: Any, *names: str) -> Any:
    """What a manifest says under these names, each within the one before; None if it does not."""
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def _parse(label: str, manifest: Mapping[str, Any], pictures: Mapping[str, Any], *, text: bool) -> Result:
    for document in (manifest, pictures):
        if (version := document.get("schema", 0)) > SCHEMA:
            raise ValueError(f"schema: expected at most {SCHEMA}, got {version}; update mikernels")
    by_name = {picture["name"]: picture for picture in pictures.get("layers", [])}
    layers = [_layer(found, by_name.get(found["name"]), text=text) for found in manifest["layers"]]
    if manifest["settings"]["budget"] == "uniform":
        layers = [replace(layer, sensitivity=math.nan) for layer in layers]
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    found = entry(manifest, "evaluation", "texts") or []
    return Result(label, manifest, layers, [_quality(quality) for quality in found])


def _layer(found: Mapping[str, Any], picture: Mapping[str, Any] | None, *, text: bool) -> Layer:
    columns = found["dropped"]
    row = {int(neuron): index for index, neuron in enumerate(columns["neuron"])}
    r2 = [float(value) for value in columns["linear_r2"]]
    is_measured = found["null_mi_nats"] is not None
    width = len(found["kept"]) + len(row)
    shown, mi, steps, damage, redundant = [], [], [], [], []
    if picture is not None:
        shown = [int(neuron) for neuron in picture["map"]["neurons"]]
        mi = _square(len(shown), picture["map"]["mi_nats"])
        steps = [int(step) for step in picture["damage"]["dropped"]]
        damage = [float(share) for share in picture["damage"]["share"]]
        table = picture["redundant"]
        for neuron, p_value, examples in zip(
            table["neuron"], table["p_value"], table["excited_by"], strict=True
        ):
            i = row[neuron]
            excited_by = [
                (float(e["activation"]), [_line(part) for part in e.get("excerpt", ())] if text else [])
                for e in examples
            ]
            mi_nats = float(columns["mi_nats"][i])
            redundant.append(
                Neuron(neuron, int(columns["partner"][i]), mi_nats, float(p_value), r2[i], excited_by)
            )
    return Layer(
        name=str(found["name"]),
        n_kept=len(found["kept"]),
        n_neurons=width,
        sensitivity=number(found["sensitivity"]),
        median_mi=number(found["median_mi_nats"]) if is_measured else math.nan,
        null_mi=number(found["null_mi_nats"]),
        predicted=sum(r2) / len(r2) if r2 and is_measured else math.nan,
        repair_error=number(found.get("repair_error")),
        shown=shown,
        mi=mi,
        is_dropped=[neuron in row for neuron in shown],
        steps=steps,
        damage=damage,
        redundant=redundant,
    )


def _line(text: Any) -> str:
    """The text in one line, with a sign for each end of a line."""
    return str(text).replace("\r", "").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def _square(size: int, above: list[float]) -> list[list[float]]:
    """The symmetric matrix with these values above its diagonal, row by row, and 0 on it."""
    if len(above) != size * (size - 1) // 2:
        raise ValueError(
            f"map: expected {size * (size - 1) // 2} values for {size} neurons, got {len(above)}"
        )
    values = iter(above)
    matrix = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1, size):
            matrix[i][j] = matrix[j][i] = float(next(values))
    return matrix


def _quality(found: Mapping[str, Any]) -> Quality:
    dense, pruned = number(found.get("perplexity_dense")), number(found.get("perplexity_pruned"))
    growth = growth_of(dense, pruned) if "perplexity_pruned" in found else math.nan
    return Quality(
        text=str(found["text"]),
        is_near=bool(found["calibrated_on"]),
        growth=growth,
        error=number(found.get("log_ratio_standard_error")),
        dense=dense,
        pruned=pruned,
        cosine=number(found.get("hidden_state_cosine")),
    )
