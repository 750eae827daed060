"""Pruning with several processes of one thread against one process.

    python -m benchmarks.speed.processes SmolLM2-135M-Instruct.Q4_1.gguf --layers 6

Prunes the first layers of a model, in turn with one process of one thread, one process of as many threads as there are
processes, and several processes that `torchrun` starts. Appends a row `processes` to `results/cpu.jsonl`: wall-clock
and processor seconds without start and loading, and how far the weights are apart.

Other work on the machine hardly changes processor seconds. The processor seconds of one thread, divided by the number
of processes and by those of the busiest process, are the speed relative to threads that never wait.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.record import append, argument_parser, command, quantiles, row
from pruning import Settings, load_model, prune
from pruning.observe.sources import builtin
from pruning.report.save import save_pruned


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


def work(folder: Path, out: Path, settings: Settings) -> None:
    """What each process does: prune the model in `folder`, and write its times to `OUT.RANK.json`."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rank, group = 0, None
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        rank, group = dist.get_rank(), dist.group.WORLD
    model, tokenizer = load_model(str(folder), device="cpu")
    if group is not None:
        dist.barrier()
    start, processor = time.perf_counter(), time.process_time()
    report = prune(model, tokenizer, calibration=[(builtin(), 1.0)], settings=settings, process_group=group)
    times = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    out.with_name(f"{out.name}.{rank}.json").write_text(json.dumps(times), encoding="utf-8")
    if rank == 0:
        save_pruned(model, tokenizer, report, out, force=True)


def measure(folder: Path, out: Path, processes: int, threads: int, settings: dict[str, int]) -> list[dict]:
    """The times of each process."""
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    arguments = ["-m", "benchmarks.speed.processes", str(folder), "--work", str(out), json.dumps(settings)]
    subprocess.run(
        [sys.executable, *start, *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    files = [out.with_name(f"{out.name}.{rank}.json") for rank in range(processes)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def compare(one: Path, other: Path) -> dict[str, object]:
    """The largest relative difference of a weight, and the number of layers that keep the same neurons."""
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
    parser.add_argument("--multiple", type=int, default=32, help="of the kept neurons")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--work", nargs=2, metavar=("OUT", "SETTINGS"), help="what each process runs")
    args = parser.parse_args()
    if args.work:
        work(Path(args.model), Path(args.work[0]), Settings(**json.loads(args.work[1])))
        return
    count = args.processes
    settings = {"calibration_tokens": args.tokens, "sequence_length": args.length, "seed": args.seed}
    settings["multiple_of"] = args.multiple
    variants = {"one thread": (1, 1), "threads": (1, count), "processes": (count, 1)}
    found: dict[str, list[list[dict]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_layers(*load_model(args.model, device="cpu"), args.layers, folder / "model")
        for _ in range(args.turns):
            for variant, (processes, threads) in variants.items():
                found[variant].append(
                    measure(folder / "model", folder / variant, processes, threads, settings)
                )
        differences = compare(folder / "threads", folder / "processes")
    seconds = {variant: [turn[0]["seconds"] for turn in turns] for variant, turns in found.items()}
    busiest = {v: [max(p["processor"] for p in turn) for turn in turns] for v, turns in found.items()}
    result = {
        "seconds": {variant: quantiles(values) for variant, values in seconds.items()},
        "processor_seconds_of_the_busiest_process": {v: quantiles(values) for v, values in busiest.items()},
        "speed_relative_to_threads": quantiles(
            [a / b for a, b in zip(seconds["threads"], seconds["processes"], strict=True)]
        ),
        "speed_relative_to_threads_that_never_wait": quantiles(
            [a / count / b for a, b in zip(busiest["one thread"], busiest["processes"], strict=True)]
        ),
        "load_average": round(os.getloadavg()[1], 1),
    } | differences
    options = {n: v for n, v in vars(args).items() if n not in ("model", "out", "work")}
    rerun = command("benchmarks.speed.processes", Path(args.model).name, **options)
    append([row("processes", rerun, options | {"model": Path(args.model).name}, result)], args.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
