"""Pruning with several processes of one thread against one process of as many threads.

    python -m benchmarks.speed.processes SmolLM2-135M-Instruct.Q4_1.gguf --layers 6

Prunes the first layers of a model from disk, in turn with one process and with several that `torchrun` starts, and
appends a row `processes` to `results/cpu.jsonl`: seconds of each stage without start and loading, and how far the
weights are apart.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.record import append, argument_parser, command, quantiles, row
from pruning import load_model

STAGES = ("capture", "measure", "select", "repair")


def first_layers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, folder: Path
) -> None:
    """Save the model with its first layers only."""
    model.model.layers = model.model.layers[:count]
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prune(folder: Path, out: Path, processes: int, threads: int, options: list[str]) -> dict[str, float]:
    """Seconds of each stage."""
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    arguments = ["-m", "pruning.cli", str(folder), f"--out={out}", "--force", "--quiet", "--device=cpu"]
    subprocess.run(
        [sys.executable, *start, *arguments, *options],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    seconds = json.loads((out / "mi_prune.json").read_text(encoding="utf-8"))["seconds"]
    return {stage: seconds[stage] for stage in STAGES}


def compare(one: Path, other: Path) -> dict[str, object]:
    """The largest relative difference of a weight, and the share of layers that keep the same neurons."""
    first, second = (
        {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        for folder in (one, other)
    )
    layers = [
        json.loads((folder / "mi_prune.json").read_text(encoding="utf-8"))["layers"]
        for folder in (one, other)
    ]
    same = [a["kept"] == b["kept"] for a, b in zip(*layers, strict=True)]
    apart = [
        float((second[n].float() - v.float()).norm() / v.float().norm().clamp_min(1e-9))
        for n, v in first.items()
    ]
    return {"layers_with_equal_selections": sum(same), "layers": len(same), "largest_difference": max(apart)}


def main() -> None:
    parser = argument_parser("benchmarks.speed.processes", __doc__, "cpu.jsonl")
    parser.add_argument("model", help="folder or .gguf file of a model whose layers are in `model.layers`")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--length", type=int, default=512, help="of a window")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.processes)
    options = [f"--calibration-tokens={args.tokens}", f"--sequence-length={args.length}"]
    options += ["--calibration=builtin", f"--seed={args.seed}"]
    one, many = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_layers(*load_model(args.model, device="cpu"), args.layers, folder / "model")
        for _ in range(args.turns):
            one.append(prune(folder / "model", folder / "one", 1, args.processes, options))
            many.append(prune(folder / "model", folder / "many", args.processes, 1, options))
        differences = compare(folder / "one", folder / "many")
    totals = [[sum(seconds.values()) for seconds in runs] for runs in (one, many)]
    result = {
        "one_process": {s: quantiles([seconds[s] for seconds in one]) for s in STAGES},
        "several_processes": {s: quantiles([seconds[s] for seconds in many]) for s in STAGES},
        "seconds": {"one_process": quantiles(totals[0]), "several_processes": quantiles(totals[1])},
        "speed_relative_to_one_process": quantiles([a / b for a, b in zip(*totals, strict=True)]),
    } | differences
    case = {
        "model": Path(args.model).name,
        "layers": args.layers,
        "tokens": args.tokens,
        "length": args.length,
        "processes": args.processes,
        "threads_of_one_process": args.processes,
        "seed": args.seed,
    }
    rerun = command(
        "benchmarks.speed.processes",
        Path(args.model).name,
        layers=args.layers,
        tokens=args.tokens,
        length=args.length,
        processes=args.processes,
        turns=args.turns,
        seed=args.seed,
    )
    append([row("processes", rerun, case, result)], args.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
