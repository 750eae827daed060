"""The file format of evidence; one file serves every ratio, criterion and repair without capturing again."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mikernels.options import Estimator
from pruning.choose.evidence import Evidence
from pruning.model.ffn import FFN
from pruning.observe.capture import Statistics, prepare_experts


def save_evidence(
    evidence: Sequence[Evidence], path: str | Path, *, estimator: Estimator, nodes: int
) -> None:
    """Write the evidence as safetensors; the file appears complete or not at all.

    Args:
        estimator, nodes: used to measure the mutual information; `load_evidence` checks them.

    Raises:
        OSError: from writing.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for layer in evidence:
        name, statistics = layer.statistics.name, layer.statistics
        tensors |= {
            f"{name}.sample": statistics.sample,
            f"{name}.n_tokens": torch.tensor(statistics.n_tokens),
            f"{name}.mean": statistics.mean,
            f"{name}.covariance": statistics.covariance,
            f"{name}.mi": layer.mi,
            f"{name}.order": layer.order,
            f"{name}.damage": layer.damage,
        }
        if layer.divergence is not None:
            tensors[f"{name}.divergence"] = torch.tensor(layer.divergence, dtype=torch.float64)
    partial = path.with_name(f".{path.name}.partial")
    try:
        on_cpu = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        save_file(on_cpu, partial, {"measured": _measured(estimator, nodes)})
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
        ValueError: not a file of evidence, from a model with other FFNs, or measured with another estimator.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such statistics file")
    try:
        with safe_open(path, "pt") as file:
            measured = (file.metadata() or {}).get("measured")
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected statistics in safetensors, got {error}") from error
    if measured != _measured(estimator, nodes):
        raise ValueError(
            f"{path}: expected statistics measured with {_measured(estimator, nodes)}, got {measured}"
        )
    evidence = []
    for ffn in ffns:
        mean = tensors.get(f"{ffn.name}.mean")
        if mean is None or len(mean) != ffn.width:
            raise ValueError(
                f"{path}: expected statistics of {ffn.width} neurons of {ffn.name}, got "
                f"{'none' if mean is None else len(mean)}; the file belongs to another model"
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
    prepared = prepare_experts(ffns, [layer.statistics for layer in evidence])
    return [replace(layer, statistics=statistics) for layer, statistics in zip(evidence, prepared, strict=True)]


def _measured(estimator: Estimator, nodes: int) -> str:
    """How the MI was measured, for people; only `grid` has nodes."""
    return f"{estimator} on {nodes} nodes" if estimator == "grid" else estimator
