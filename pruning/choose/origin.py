"""What evidence was measured on: which weights, which tokens, with which estimator."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from mikernels.isolation import isolated
from mikernels.options import Estimator
from pruning.observe.batches import Inputs, Windows
from pruning.settings import Settings

CHUNK = 2**20
"""Values of a parameter that are read at a time."""
SAMPLES = 4096
"""Values of each parameter that count with their position."""
CALIBRATION_SETTINGS = ("calibration_tokens", "sequence_length", "bos", "sample_size")
"""What decides which tokens are read and sampled; statistics bring theirs."""


@dataclass(frozen=True)
class Origin:
    """What evidence was measured on.

    Attributes:
        estimator: of the mutual information, in words.
        model: `model_fingerprint` of the dense model.
        calibration: `calibration_identity`; empty if unknown.
    """

    estimator: str
    model: str
    calibration: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def estimator_name(estimator: Estimator, nodes: int) -> str:
    """How the MI was measured, for people; only `grid` has nodes."""
    return f"{estimator} on {nodes} nodes" if estimator == "grid" else estimator


@isolated()
@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of the names and shapes of the parameters, of all their values regardless of order, and of about 4,096
    evenly spaced values of each in order.

    It is the same on every device, and for two dtypes that hold the same values, such as bfloat16 weights and the
    float32 that they are computed in. Parameters that accelerate has offloaded are read. Of a parameter that is nowhere
    only name and shape count.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        if values.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            values = torch.empty(0)
            if getattr(getattr(owner, "_hf_hook", None), "weights_map", None) is not None:
                values = load_offloaded_parameter(model, name).detach().flatten()
        checksum = sum(int(_bits(chunk).sum(dtype=torch.int64)) for chunk in values.split(CHUNK))
        sample = _bits(values[:: max(1, len(values) // SAMPLES)])
        digest.update(f"{name} {list(parameter.shape)} {checksum} ".encode())
        digest.update(sample.cpu().numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def calibration_identity(windows: Windows | Inputs, settings: Settings) -> dict[str, Any]:
    """Which tokens were read, and how the sample for the MI was drawn from them; for people and for comparison."""
    digest = hashlib.sha256()
    for sequence in windows.tensors():
        digest.update(f"{len(sequence)} ".encode())
        values = sequence.cpu().float() if sequence.is_floating_point() else sequence.cpu()
        digest.update(values.numpy().astype("<f4" if sequence.is_floating_point() else "<i8").tobytes())
    return {
        "source": windows.source,
        "tokens": windows.n_tokens,
        "sequences": len(windows),
        "longest_sequence": windows.longest,
        **{name: getattr(settings, name) for name in CALIBRATION_SETTINGS},
        "seed": settings.seed,
        "sha256": digest.hexdigest(),
    }


def check_calibration(given: dict[str, Any], measured: dict[str, Any], file: str) -> None:
    """Raise unless the calibration is the one that the statistics in `file` were measured on.

    Raises:
        ValueError: other tokens. The message describes both.
    """
    if measured and given["sha256"] != measured.get("sha256"):
        raise ValueError(
            f"calibration: expected the tokens that {file} was measured on ({_describe(measured)}), got "
            f"{_describe(given)}; calibrate on the same text with the same options, or leave the calibration out"
        )


def check_calibration_settings(settings: Settings, measured: dict[str, Any], file: str) -> None:
    """Raise if the size of a sample is neither its default nor what the statistics in `file` were measured with.

    Args:
        measured: the identity of their calibration.

    Raises:
        ValueError: the value would have no effect.
    """
    for name, flags in (
        ("calibration_tokens", "--calibration-tokens or --num-samples"),
        ("sample_size", "--sample-size"),
    ):
        given = getattr(settings, name)
        used = measured.get(name, given)
        if given not in (used, getattr(Settings, name)):
            raise ValueError(
                f"{name} ({flags}): expected {used}, which {file} was measured with, got {given}; leave the option "
                f"out, or measure again without the file"
            )


def _bits(values: Tensor) -> Tensor:
    return values.float().contiguous().view(torch.int32)


def _describe(calibration: dict[str, Any]) -> str:
    names = ("tokens", "source", "sequences", "longest_sequence", "sha256")
    tokens, source, sequences, longest, digest = (calibration.get(name, "?") for name in names)
    return f"{tokens} tokens of {source} in {sequences} sequences of up to {longest}, {str(digest)[:8]}"
