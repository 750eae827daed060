"""The file format of evidence; one file serves every ratio, criterion and repair without capturing again."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mikernels.written import complete_file
from pruning.choose.evidence import Evidence
from pruning.choose.origin import Origin
from pruning.model.ffn import FFN
from pruning.model.headers import DTYPES
from pruning.observe.batches import Inputs, Windows
from pruning.observe.capture import Statistics, prepare_experts

ORIGIN = "origin"
"""The entry of the header with an `Origin`; it marks a file of evidence."""
EARLIER = "measured"
"""The entry that marked it in earlier versions, which did not store the model."""
WINDOWS = "calibration"
"""Prefix of the tensors that hold the tokens of the calibration."""
MEASURE_AGAIN = "measure again with save_statistics"
_DTYPES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "I64"}


class StoredEvidence(Sequence[Evidence]):
    """Evidence in files, of which one FFN's is in memory at a time.

    Attributes:
        n_tokens: the largest number of tokens that reached an FFN.
        divergences: of the FFNs; where given, they take the place of those in the files.
    """

    def __init__(self, ffns: Sequence[FFN], paths: Sequence[Path]) -> None:
        """Args: paths: the file of each FFN."""
        self._ffns, self._paths = list(ffns), list(paths)
        self.divergences: list[float] | None = None
        counts = (_tensor(path, f"{ffn.name}.n_tokens") for ffn, path in zip(ffns, paths, strict=True))
        self.n_tokens = max(map(int, counts))

    def __len__(self) -> int:
        return len(self._ffns)

    def __getitem__(self, index: Any) -> Any:
        ffn, path = self._ffns[index], self._paths[index]
        evidence = _evidence_of(ffn, path)
        (statistics,) = prepare_experts([ffn], [evidence.statistics], most=self.n_tokens)
        divergence = evidence.divergence if self.divergences is None else self.divergences[index]
        return replace(evidence, statistics=statistics, divergence=divergence)


def store_evidence(evidence: Iterable[Evidence], ffns: Sequence[FFN], folder: Path) -> StoredEvidence:
    """Write each FFN's evidence to a file of its own in `folder` as it comes.

    Raises:
        OSError: from writing; or before the first one is measured, the disk has no space for all of them.
    """
    needed = sum(4 * ffn.width**2 for ffn in ffns)  # of the covariances alone
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{folder}: expected at least {needed / 1e9:.2f} GB of free disk space for what is measured of all layers, "
            f"got {free / 1e9:.2f} GB; set TMPDIR to a folder on another disk"
        )
    paths: list[Path] = []
    for layer in evidence:
        paths.append(folder / f"{len(paths)}.safetensors")
        save_evidence([layer], paths[-1])
        del layer  # free the memory before the next layer needs as much
    return StoredEvidence(ffns, paths)


def save_evidence(
    evidence: Sequence[Evidence],
    path: str | Path,
    origin: Origin | None = None,
    windows: Windows | Inputs | None = None,
) -> None:
    """Write the evidence as safetensors, one FFN after the other; the file appears complete or not at all.

    Args:
        origin: what it was measured on; `load_evidence` checks it.
        windows: the tokens that it was measured on, for `load_windows`. Other inputs of models are not saved.

    Raises:
        OSError: from writing.
    """
    path = Path(path)
    header: dict[str, Any] = {} if origin is None else {"__metadata__": {ORIGIN: origin.to_json()}}
    end = 0
    for part in _parts(evidence, windows):
        for name, tensor in part.items():
            start, end = end, end + tensor.nbytes
            dtype = _DTYPES[tensor.dtype]
            header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with complete_file(path) as partial, partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in _parts(evidence, windows):
                for tensor in part.values():
                    flat = tensor.detach().cpu().contiguous().flatten()
                    file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    except OSError as error:
        raise OSError(f"{path}: could not write the statistics: {error}") from error


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


def load_evidence(path: str | Path, ffns: Sequence[FFN], *, estimator: str, model: str) -> StoredEvidence:
    """What `save_evidence` wrote, to be read onto the devices of the FFNs.

    Args, Raises: see `check_evidence`.
    """
    check_evidence(path, ffns, estimator=estimator, model=model)
    return StoredEvidence(ffns, [Path(path)] * len(ffns))


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


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        try:
            tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path}: expected {name}, got none; {MEASURE_AGAIN}") from error
    return tensor


def _parts(evidence: Sequence[Evidence], windows: Windows | Inputs | None) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file by name, a few at a time."""
    if isinstance(windows, Windows):
        start = -1 if windows.decoder_start is None else windows.decoder_start
        yield {
            f"{WINDOWS}.tokens": torch.cat([sequence.cpu() for sequence in windows.sequences]),
            f"{WINDOWS}.lengths": torch.tensor([len(sequence) for sequence in windows.sequences]),
            f"{WINDOWS}.special": torch.tensor([windows.padding, start]),
        }
    yield from map(_tensors_of, evidence)


def _tensors_of(evidence: Evidence) -> dict[str, Tensor]:
    name, statistics = evidence.statistics.name, evidence.statistics
    tensors = {
        "sample": statistics.sample,
        "n_tokens": torch.tensor(statistics.n_tokens),
        "mean": statistics.mean,
        "covariance": statistics.covariance,
        "order": evidence.order,
        "damage": evidence.damage,
    }
    if statistics.tokens is not None:
        tensors["tokens"] = statistics.tokens
    if evidence.all_pairs is not None:
        tensors["mi"] = evidence.all_pairs
    if evidence.divergence is not None:
        tensors["divergence"] = torch.tensor(evidence.divergence, dtype=torch.float64)
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _evidence_of(ffn: FFN, path: Path) -> Evidence:
    n, entries = ffn.width, {}
    weight = ffn.output.weight
    device = "cpu" if weight.is_meta else weight.device  # of a layer whose weights are on disk
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
        found = {key: file.get_slice(key).get_shape() for key in stored if key.startswith(f"{ffn.name}.")}
        n_samples, n_ordered = ((found.get(f"{ffn.name}.{key}") or [0])[0] for key in ("sample", "order"))
        shapes = {
            "sample": [n_samples, n],
            "n_tokens": [],
            "mean": [n],
            "covariance": [n, n],
            "order": [n_ordered],
            "damage": [n_ordered + 1],
        }
        if f"{ffn.name}.mi" in stored:
            shapes["mi"] = [n, n]
        for key, shape in shapes.items():
            got = found.get(f"{ffn.name}.{key}")
            if got is None or list(got) != shape:
                raise ValueError(
                    f"{path}: expected {ffn.name}.{key} of shape {shape}, got {got or 'none'}; {MEASURE_AGAIN}"
                )
            entries[key] = file.get_tensor(f"{ffn.name}.{key}").to(device)
        name = f"{ffn.name}.divergence"
        divergence = float(file.get_tensor(name)) if name in stored else None
        name = f"{ffn.name}.tokens"  # files of earlier versions have none
        tokens = file.get_tensor(name) if name in stored else None
    statistics = Statistics(
        ffn.name,
        entries["sample"],
        int(entries["n_tokens"]),
        entries["mean"],
        entries["covariance"],
        tokens=tokens,
    )
    return Evidence(statistics, entries.get("mi"), entries["order"], entries["damage"], divergence)
