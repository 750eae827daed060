"""The file format of evidence; one file serves every ratio, criterion and repair without capturing again."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning.choose.evidence import Evidence
from pruning.choose.origin import Origin
from pruning.model.ffn import FFN
from pruning.observe.batches import Inputs, Windows
from pruning.observe.capture import Statistics, prepare_experts

ORIGIN = "origin"
"""The entry of the header with an `Origin`; it marks a file of evidence."""
EARLIER = "measured"
"""The entry that marked it in earlier versions, which did not store the model."""
WINDOWS = "calibration"
"""Prefix of the tensors that hold the tokens of the calibration."""
MEASURE_AGAIN = "measure again with save_statistics"


def save_evidence(
    evidence: Sequence[Evidence], path: str | Path, origin: Origin, windows: Windows | Inputs | None = None
) -> None:
    """Write the evidence as safetensors; the file appears complete or not at all.

    Args:
        origin: what it was measured on; `load_evidence` checks it.
        windows: the tokens that it was measured on, for `load_windows`. Other inputs of models are not saved.

    Raises:
        OSError: from writing.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    if isinstance(windows, Windows):
        tensors[f"{WINDOWS}.tokens"] = torch.cat([sequence.cpu() for sequence in windows.sequences])
        tensors[f"{WINDOWS}.lengths"] = torch.tensor([len(sequence) for sequence in windows.sequences])
        start = -1 if windows.decoder_start is None else windows.decoder_start
        tensors[f"{WINDOWS}.special"] = torch.tensor([windows.padding, start])
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
        save_file(on_cpu, partial, {ORIGIN: origin.to_json()})
        os.replace(partial, path)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: could not write the statistics: {error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def is_evidence(path: str | Path) -> bool:
    """Whether a file holds evidence, also of an earlier version."""
    try:
        return bool(_header(path).keys() & {ORIGIN, EARLIER})
    except ValueError:
        return False


def read_origin(path: str | Path) -> Origin:
    """What the evidence in a file was measured on; reads only the header.

    Raises:
        OSError: no such file, a folder, or it cannot be read.
        ValueError: not a file of evidence, or one of an earlier version, which does not say.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a statistics file, got a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such statistics file")
    header = _header(path)
    if ORIGIN not in header and EARLIER in header:
        raise ValueError(
            f"{path}: expected statistics that name their model, got a file of an earlier version; {MEASURE_AGAIN}"
        )
    try:
        entries: dict[str, Any] = json.loads(header[ORIGIN])
        origin = Origin(entries["estimator"], entries["model"], entries["calibration"])
        if not (isinstance(origin.calibration, dict) and isinstance(origin.model, str)):
            raise TypeError(origin)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected statistics from save_statistics, got another file") from error
    return origin


def check_evidence(path: str | Path, ffns: Sequence[FFN], *, estimator: str, model: str) -> Origin:
    """Check, by the header of the file, that the evidence is of this model; return what it was measured on.

    Args:
        estimator: as in `pruning.choose.origin.Origin`.
        model: the fingerprint of the model that the FFNs belong to.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: not a file of evidence, of another model, or measured with another estimator.
    """
    origin = read_origin(path)
    if origin.estimator != estimator:
        raise ValueError(f"{path}: expected statistics measured with {estimator}, got {origin.estimator}")
    with safe_open(path, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for ffn in ffns:
        width = (shapes.get(f"{ffn.name}.mean") or (None,))[0]
        if width != ffn.width:
            raise ValueError(
                f"{path}: expected statistics of {ffn.width} neurons of {ffn.name}, got {width or 'none'}; the file "
                f"belongs to another model"
            )
    if origin.model != model:
        raise ValueError(
            f"{path}: expected statistics of this model ({model[:8]}), got those of a model with other weights "
            f"({origin.model[:8]}); {MEASURE_AGAIN}"
        )
    return origin


def load_evidence(path: str | Path, ffns: Sequence[FFN], *, estimator: str, model: str) -> list[Evidence]:
    """Read what `save_evidence` wrote, onto the devices of the FFNs.

    Args, Raises: see `check_evidence`.
    """
    check_evidence(path, ffns, estimator=estimator, model=model)
    tensors = load_file(path)
    evidence = [_evidence_of(ffn, tensors, path) for ffn in ffns]
    prepared = prepare_experts(ffns, [layer.statistics for layer in evidence])
    return [
        replace(layer, statistics=statistics) for layer, statistics in zip(evidence, prepared, strict=True)
    ]


def ffn_names(path: str | Path) -> set[str]:
    """The names of the FFNs that the evidence in a file is of.

    Raises:
        OSError, ValueError: see `read_origin`.
    """
    read_origin(path)
    with safe_open(path, "pt") as file:
        return {key.removesuffix(".mean") for key in file.keys() if key.endswith(".mean")}  # noqa: SIM118


def load_windows(path: str | Path) -> Windows | None:
    """The tokens that the evidence in a file was measured on; None if it does not hold them.

    Raises:
        OSError, ValueError: see `read_origin`.
    """
    source = read_origin(path).calibration.get("source", "token ids")
    with safe_open(path, "pt") as file:
        if f"{WINDOWS}.tokens" not in set(file.keys()):
            return None
        tokens, lengths, special = (
            file.get_tensor(f"{WINDOWS}.{key}") for key in ("tokens", "lengths", "special")
        )
    padding, start = special.tolist()
    return Windows(tokens.split(lengths.tolist()), source, padding, None if start < 0 else start)


def has_divergence(path: str | Path) -> bool:
    """Whether the evidence in a file holds what `budget="kl"` needs."""
    read_origin(path)
    with safe_open(path, "pt") as file:
        return any(key.endswith(".divergence") for key in file.keys())  # noqa: SIM118


def _header(path: str | Path) -> dict[str, str]:
    with Path(path).open("rb"):
        pass  # raises an OSError that names the file
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected statistics in safetensors, got {error}") from error


def _evidence_of(ffn: FFN, tensors: dict[str, Tensor], path: str | Path) -> Evidence:
    n, entries = ffn.width, {}
    n_samples = len(tensors.get(f"{ffn.name}.sample", ()))
    shapes = {
        "sample": (n_samples, n),
        "n_tokens": (),
        "mean": (n,),
        "covariance": (n, n),
        "mi": (n, n),
        "order": (n,),
        "damage": (n + 1,),
    }
    for key, shape in shapes.items():
        tensor = tensors.get(f"{ffn.name}.{key}")
        if tensor is None or tuple(tensor.shape) != shape:
            got = "none" if tensor is None else list(tensor.shape)
            raise ValueError(
                f"{path}: expected {ffn.name}.{key} of shape {list(shape)}, got {got}; {MEASURE_AGAIN}"
            )
        entries[key] = tensor.to(ffn.output.weight.device)
    statistics = Statistics(
        ffn.name, entries["sample"], int(entries["n_tokens"]), entries["mean"], entries["covariance"]
    )
    divergence = tensors.get(f"{ffn.name}.divergence")
    return Evidence(
        statistics,
        entries["mi"],
        entries["order"],
        entries["damage"],
        None if divergence is None else float(divergence),
    )
