"""Verifying a checkpoint: load it in a fresh process and compare its outputs with those of the model in memory.

The fresh process runs this file as `python -m pruning.model.reload LOADER FOLDER DEVICE INPUTS OUTPUT`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pruning.model.loaded import check_loaded
from pruning.model.uneven import is_uneven, load_uneven

UNEVEN = "uneven"
"""The loader for layers of different widths; any other loader is the name of a class of transformers."""


def reload_difference(model: PreTrainedModel, folder: str | Path, inputs: Mapping[str, Tensor]) -> float:
    """Largest absolute difference between the outputs of `model` and of the checkpoint in `folder`, relative to the
    largest absolute output; NaN if either output has one.

    The checkpoint is loaded in a fresh process by the stock transformers class, or by `load_uneven` if the widths of
    the layers differ.

    Args:
        inputs: arguments of the model to compare on, such as `input_ids` `[B, L]`.

    Raises:
        RuntimeError: the fresh process could not load the checkpoint, or not run it.
    """
    loader = type(model).__name__
    own_code = not hasattr(transformers, loader)  # which came with the model and is trusted already
    if own_code:
        loader = "AutoModelForCausalLM" if model.can_generate() else "AutoModel"
    if is_uneven(model.config):
        loader = UNEVEN
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "inputs.safetensors"), Path(scratch, "output.safetensors")
        save_file({name: values.cpu().contiguous() for name, values in inputs.items()}, source)
        arguments = [
            loader,
            "trusted" if own_code else "",
            str(folder),
            str(model.device),
            str(source),
            str(target),
        ]
        command = [sys.executable, "-m", "pruning.model.reload", *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # finds the same packages
        options: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "env": environment}
        done = subprocess.run(command, check=False, **options)  # noqa: S603
        if done.returncode != 0:
            message = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(
                f"{folder}: a fresh process could not load the checkpoint and run it:\n{message}"
            )
        reloaded = load_file(target)["output"]
    output = _outputs(model, inputs).float()
    return float((output - reloaded.float()).abs().max() / output.abs().max())


def _run(loader: str, trusted: str, folder: str, device: str, source: str, target: str) -> None:
    """Load the checkpoint and write its outputs for the inputs in `source` to `target`."""
    if loader == UNEVEN:
        model = load_uneven(folder, trust_remote_code=bool(trusted))
    else:
        model, info = getattr(transformers, loader).from_pretrained(
            folder, dtype="auto", output_loading_info=True, trust_remote_code=bool(trusted)
        )
        check_loaded(folder, model, info)
    save_file({"output": _outputs(model.to(device).eval(), load_file(source)).contiguous()}, target)


@torch.inference_mode()
def _outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    output: Tensor = model(**{name: values.to(model.device) for name, values in inputs.items()})[0]
    return output.cpu()


if __name__ == "__main__":
    _run(*sys.argv[1:])
