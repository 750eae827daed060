"""Models from and to disk: safetensors only, and an output folder that appears whole or not at all."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning.model.families import WIDTH, WIDTHS, find_ffns
from pruning.model.surgery import resize_ffn, weight_bytes
from pruning.report.manifest import MANIFEST, Report

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_model(
    source: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a folder, a GGUF file (de-quantized) or a name on the Hugging Face hub.

    Args:
        dtype: of the weights; by default what computes fastest without loss of range (`working_dtype`).
        device: by default a GPU where there is one.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a checkpoint of pickles, or an architecture that needs remote code.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or working_dtype(device)
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"{source}: no such GGUF file")
        model, tokenizer = _load_gguf(path, dtype)
        return model.to(device).eval(), tokenizer
    if path.is_dir():
        _refuse_pickles(path)
    elif path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise FileNotFoundError(f"{source}: no such folder")
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if path.is_dir() and getattr(config.get_text_config(), WIDTHS, None):
        model = load_uneven(path, dtype)
    else:
        model = _model_class(config).from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    return model.to(device).eval(), tokenizer


def working_dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, else float32.

    On a CPU that is AVX-512, whose absence makes bfloat16 products hundreds of times slower.
    """
    fast = device != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if fast else torch.float32


def check_output(out: Path, *, needed_bytes: int = 0, force: bool = False) -> None:
    """Raise unless a checkpoint of `needed_bytes` can be written to `out`.

    Raises:
        FileExistsError: `out` is a file or a mount point, or a folder that is not empty, without `force`; or
            with `force` a folder that holds no earlier result, which nobody meant to delete.
        OSError: too little disk space.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: expected a folder to write to, found a file")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise FileExistsError(
                f"{out}: expected a new or empty folder, found files in it (--force replaces them)"
            )
        if not (out / MANIFEST).is_file():
            raise FileExistsError(
                f"{out}: expected an earlier result to replace ({MANIFEST}), found a folder of other files"
            )
    if out.is_mount():
        raise FileExistsError(
            f"{out}: expected a folder that can be renamed, found a mount point; name one in it"
        )
    parent = next(p for p in out.resolve().parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise OSError(
            f"{parent}: expected {needed_bytes / 1e6:.0f} MB of free disk space, found {free / 1e6:.0f} MB"
        )


def save_pruned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Report,
    out: str | Path,
    *,
    force: bool = False,
) -> None:
    """Write the pruned model, its tokenizer and the manifest to the folder `out`.

    They are written to a hidden folder beside it that takes its name when complete: after an error or a full
    disk, `out` is as it was before. A kill leaves that hidden folder behind, and between the two renames of a
    replacement the old result under the hidden name `.NAME.*.old`.

    Raises:
        FileExistsError, OSError: as `check_output`, or what writing itself raised.
    """
    out = Path(out).resolve()
    check_output(out, needed_bytes=weight_bytes(model), force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        start = time.perf_counter()
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        for file in staging.rglob("*"):
            if file.is_file():
                _sync(file)
        report.seconds["save"] = time.perf_counter() - start
        (staging / MANIFEST).write_text(report.manifest(), encoding="utf-8")
        _sync(staging / MANIFEST)
        staging.chmod(0o777 & ~_umask())
        _move_into_place(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def reload_difference(model: PreTrainedModel, folder: str | Path, ids: Tensor) -> float:
    """Largest difference between the outputs of `model` and of what is loaded from `folder`, relative to the largest
    output; NaN where either has one.

    The checkpoint is loaded in a fresh process, by plain transformers that knows nothing of this package, or by
    `load_model` where the widths of the layers differ.

    Args:
        ids: `[B, L]` tokens to compare on.

    Raises:
        RuntimeError: the fresh process could not load the checkpoint.
    """
    uneven = bool(getattr(model.config.get_text_config(), WIDTHS, None))
    kind = "AutoModelForCausalLM" if model.can_generate() else type(model).__name__
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "ids.safetensors"), Path(scratch, "output.safetensors")
        save_file({"ids": ids.cpu()}, source)
        command = [
            sys.executable,
            "-c",
            RELOAD_UNEVEN if uneven else RELOAD,
            kind,
            str(folder),
            str(model.device),
            str(source),
            str(target),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise RuntimeError(
                f"{folder}: a fresh process could not load the checkpoint:\n{done.stderr.strip()}"
            )
        reloaded = load_file(target)["output"]
    with torch.inference_mode():
        output = model(input_ids=ids.to(model.device))[0].cpu()
    return float((output.float() - reloaded.float()).abs().max() / output.float().abs().max())


RELOAD = """
import sys, torch, transformers
from safetensors.torch import load_file, save_file
kind, folder, device, source, target = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, dtype="auto").to(device).eval()
with torch.inference_mode():
    output = model(input_ids=load_file(source)["ids"].to(device))[0]
save_file({"output": output.cpu().contiguous()}, target)
"""


RELOAD_UNEVEN = RELOAD.replace(
    'getattr(transformers, kind).from_pretrained(folder, dtype="auto")', "load_uneven(folder)"
).replace("import sys", "from pruning.model.checkpoint import load_uneven; import sys")


def load_uneven(folder: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The stock class with layers of the widths that the config in `folder` lists, by default in the dtype saved.

    Raises:
        ValueError: weights that are missing, or that the model does not have.
    """
    folder, config = Path(folder), AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    widest = getattr(text, WIDTH)
    widths = getattr(text, WIDTHS)
    setattr(text, WIDTH, 1)  # FFNs of one neuron cost nothing to initialise
    delattr(text, WIDTHS)
    model: PreTrainedModel = _model_class(config)._from_config(config, dtype=dtype or config.dtype)
    ffns = find_ffns(model)
    if len(ffns) != len(widths):
        raise ValueError(f"{folder}: expected {len(ffns)} widths in {WIDTHS}, found {len(widths)}")
    for ffn, width in zip(ffns, widths, strict=True):
        resize_ffn(ffn, width)
    setattr(text, WIDTH, widest)
    setattr(text, WIDTHS, widths)
    absent = set(model.state_dict())
    for file in sorted(folder.glob("*.safetensors")):
        absent -= set(weights := load_file(file))
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"{folder}: expected the weights of {type(model).__name__}, found {unknown[0]}")
    model.tie_weights()
    if absent - set(model.all_tied_weights_keys):
        raise ValueError(f"{folder}: expected all weights of the model, found none named {min(absent)}")
    return model


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder, name = str(path.parent), path.name
    options = {}
    if hasattr(transformers, "GgufConfig"):  # 5.17 has none and always unpacks the weights
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype, **options)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # unpacked weights still count as quantized, which save_pretrained refuses
        quantizer.remove_quantization_config(model)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


def _model_class(config: transformers.PretrainedConfig) -> Any:
    """The class that the checkpoint was saved from, else what the Auto classes make of its config."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    remote = getattr(config, "auto_map", {})
    causal = type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in remote
    return AutoModelForCausalLM if causal else AutoModel


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: expected safetensors, found {', '.join(pickles)}; pickled checkpoints can run any code "
            f"and are refused"
        )
    raise FileNotFoundError(f"{folder}: expected a model in safetensors, found none")


def _move_into_place(staging: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        staging.rename(out)  # onto an empty folder too, in one step
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    try:
        out.rename(old)
        staging.rename(out)
    except BaseException:
        if not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old)


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
