"""All that a selection is made from, for each FFN; kept in a file, it serves any ratio without a forward pass."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import mikernels
from mikernels.options import Estimator
from pruning.choose.criteria import conditional_mi
from pruning.model.families import FFN
from pruning.observe.capture import Statistics


@dataclass(frozen=True)
class Evidence:
    """What is known of one FFN.

    Attributes:
        statistics: of its activations.
        mi: `[N, N]` float32, nats, 0 on the diagonal.
        order: `[N]` of `pruning.choose.criteria.conditional_mi`.
        damage: `[N + 1]` of the same.
        divergence: of the model when this FFN is halved (`pruning.choose.sensitivity.with_divergence`), where measured.
    """

    statistics: Statistics
    mi: Tensor
    order: Tensor
    damage: Tensor
    divergence: float | None = None

    @cached_property
    def median_mi(self) -> float:
        """Over all pairs, nats."""
        return float(self.mi[torch.ones_like(self.mi, dtype=torch.bool).triu_(1)].median())


def measure(ffn: FFN, statistics: Statistics, *, estimator: Estimator, nodes: int, seed: int) -> Evidence:
    """The mutual information of all pairs of neurons, and what it costs the output to drop them.

    Raises:
        ValueError: as `mikernels.mutual_information`, with the name of the FFN.
    """
    try:
        mi = mikernels.mutual_information(statistics.sample, estimator=estimator, nodes=nodes, seed=seed)
    except ValueError as error:
        raise ValueError(f"{ffn.name}: {error}") from error
    mi.fill_diagonal_(0.0)
    order, damage = conditional_mi(statistics.covariance, ffn.output.weight)
    return Evidence(statistics, mi, order, damage)


def save_evidence(
    evidence: Sequence[Evidence], path: str | Path, *, estimator: Estimator, nodes: int
) -> None:
    """Write safetensors; the file appears whole or not at all.

    Args:
        estimator, nodes: that the mutual information was measured with, for `load_evidence` to compare.

    Raises:
        OSError: what writing raised.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for layer in evidence:
        name, gathered = layer.statistics.name, layer.statistics
        tensors |= {
            f"{name}.sample": gathered.sample,
            f"{name}.n_tokens": torch.tensor(gathered.n_tokens),
            f"{name}.mean": gathered.mean,
            f"{name}.covariance": gathered.covariance,
            f"{name}.mi": layer.mi,
            f"{name}.order": layer.order,
            f"{name}.damage": layer.damage,
        }
        if layer.divergence is not None:
            tensors[f"{name}.divergence"] = torch.tensor(layer.divergence, dtype=torch.float64)
    partial = path.with_name(f".{path.name}.partial")
    try:
        whole = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        save_file(whole, partial, {"measured": _measured(estimator, nodes)})
        os.replace(partial, path)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: could not write the statistics: {error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_evidence(
    path: str | Path, ffns: Sequence[FFN], *, estimator: Estimator, nodes: int
) -> list[Evidence]:
    """Read what `save_evidence` wrote, onto the devices of the FFNs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, of a model with other FFNs, or measured with another estimator.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of statistics")
    try:
        with safe_open(path, "pt") as file:
            measured = (file.metadata() or {}).get("measured")
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected statistics in safetensors: {error}") from error
    if measured != _measured(estimator, nodes):
        raise ValueError(
            f"{path}: expected statistics measured with {_measured(estimator, nodes)}, found {measured}"
        )
    evidence = []
    for ffn in ffns:
        found = tensors.get(f"{ffn.name}.mean")
        if found is None or len(found) != ffn.width:
            raise ValueError(
                f"{path}: expected statistics of {ffn.width} neurons of {ffn.name}, found "
                f"{'none' if found is None else len(found)}; it was made for another model"
            )
        part = {
            key: tensors[f"{ffn.name}.{key}"].to(ffn.output.weight.device)
            for key in ("sample", "n_tokens", "mean", "covariance", "mi", "order", "damage")
        }
        statistics = Statistics(
            ffn.name, part["sample"], int(part["n_tokens"]), part["mean"], part["covariance"]
        )
        divergence = tensors.get(f"{ffn.name}.divergence")
        evidence.append(
            Evidence(
                statistics,
                part["mi"],
                part["order"],
                part["damage"],
                None if divergence is None else float(divergence),
            )
        )
    return evidence


def _measured(estimator: Estimator, nodes: int) -> str:
    """In words; only `grid` has nodes."""
    return f"{estimator} on {nodes} nodes" if estimator == "grid" else estimator
