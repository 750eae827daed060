"""What a run has written, to compare it with what another one has."""

import json

import torch
from safetensors.torch import load_file


def weights(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def result_of(folder):
    """Weights, and a manifest without the time, the memory, the command and whether it was resumed, with the pictures
    of the layers."""
    manifest = json.loads((folder / "mi_prune.json").read_text())
    for name in ("seconds", "peak_bytes", "command", "resumed"):
        manifest.pop(name, None)
    manifest["pictures"] = (folder / "mi_prune_pictures.json.gz").read_bytes()
    return weights(folder), manifest


def assert_same(one, other):
    (first, manifest), (second, expected) = result_of(one), result_of(other)
    assert manifest.keys() == expected.keys()
    for name, value in manifest.items():
        assert value == expected[name], f"{name}: {value} != {expected[name]}"
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
