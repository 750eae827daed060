"""What `--plan` predicts for Llamas, from their configs, what planning takes, and what a run takes that fits.

    python -m benchmarks.speed.plans --size 70B
    python -m benchmarks.speed.plans --size 7B --layers 1 --tokens 16384 --run
    python -m benchmarks.speed.plans --size 70B --layers 2 --tokens 91752 --run --device cuda

Appends a row `plan` to `results/cpu.jsonl`: seconds and memory of planning, the exact size of the model and of the
result, and for each stage the operations, and the time that they would take on this machine by the measured rates. With
`--run`, random weights are then pruned in memory, and the row has the seconds of each stage.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.record import append, argument_parser, command, row
from pruning import Settings, plan, prune
from pruning.planning.available import own_memory

LENGTH = 512
"""Tokens of a window of a run."""
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SIZES = {
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "405B": {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 1024,  # its embeddings take no time
    },
}
"""Llama 3, 3.1 and 2."""


def measure(
    entries: dict[str, Any], settings: Settings, device: str, dtype: torch.dtype, *, run: bool
) -> dict[str, Any]:
    """The plan for a config, in numbers; with `run` also the seconds that each stage takes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(entries), encoding="utf-8")
        before, start = own_memory(), time.perf_counter()
        found = plan(folder, settings=settings, from_disk=not run, dtype=dtype, device=device)
        seconds, grown = time.perf_counter() - start, own_memory() - before
        measured = prune_random(folder, settings, device, dtype) if run else {}
    return {
        "planning_seconds": round(seconds, 1),
        "planning_memory_mb": round(grown / 1e6),
        "parameters": found.shapes.parameters,
        "bytes": found.shapes.bytes,
        "files": len(found.shapes.files),
        "predicted_memory_gb": round(found.memory / 1e9, 2),
        "predicted_disk_gb": round(found.disk / 1e9, 2),
        "needed_tokens": found.needed_tokens,
        "rates": {name: float(f"{rate:.3g}") for name, rate in asdict(found.rates).items()},
        "threads": torch.get_num_threads(),
        "measured_seconds": measured,
        "measured_memory_gb": peak_memory_gb(device) if run else None,
        "stages": {
            stage.name: {
                "predicted_seconds": round(stage.seconds, 1),
                "predicted_hours": round(stage.seconds / 3600, 2),
                "operations": {n: float(f"{x:.4g}") for n, x in stage.operations._asdict().items() if x},
            }
            for stage in found.stages
        },
    }


def prune_random(folder: str, settings: Settings, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Prune random weights of the config in `folder`; the seconds of each stage."""
    torch.manual_seed(settings.seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    windows = torch.randint(model.config.vocab_size, (settings.calibration_tokens // LENGTH, LENGTH))
    report = prune(model, None, calibration=windows, settings=settings, progress=True)
    return {stage: round(seconds, 1) for stage, seconds in report.seconds.items()}


def peak_memory_gb(device: str) -> float | None:
    """What torch has had on a GPU at once."""
    return None if device == "cpu" else round(torch.cuda.max_memory_allocated() / 1e9, 2)


def main() -> None:
    parser = argument_parser("benchmarks.speed.plans", __doc__, "cpu.jsonl")
    parser.add_argument("--size", choices=SIZES, default="70B")
    parser.add_argument("--layers", type=int, help="in place of those of the model")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=57_344)
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="float32", help="to compute in")
    parser.add_argument(
        "--run", action="store_true", help="also prune a model of this size with random weights"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    entries = LLAMA | SIZES[args.size]
    if args.layers:
        entries |= {"num_hidden_layers": args.layers}
    settings = Settings(
        ratio=args.ratio, calibration_tokens=args.tokens, sequence_length=LENGTH, refine=args.refine
    )
    case = {
        "model": f"Llama {args.size}",
        "layers": entries["num_hidden_layers"],
        "dtype": args.dtype,
        "ratio": args.ratio,
        "tokens": args.tokens,
        "refine": args.refine,
    }
    options = {n: v for n, v in vars(args).items() if n != "out"}
    rerun = command("benchmarks.speed.plans", **options)
    result = measure(entries, settings, args.device, getattr(torch, args.dtype), run=args.run)
    found = row("plan", rerun, case, result, device=args.device)
    append([found], args.out)
    print(json.dumps(found["case"]), json.dumps(found["result"]))


if __name__ == "__main__":
    main()
