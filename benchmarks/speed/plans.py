"""What `--plan` predicts for Llamas of 70 and 405 billion parameters, from their configs, and what planning takes.

    python -m benchmarks.speed.plans --size 70B

Appends a row `plan` to `results/cpu.jsonl`: seconds and memory of planning, the exact size of the model and of the
result, and for each stage the operations, and the time that they would take on this machine by the measured rates.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import append, argument_parser, command, row
from pruning import Settings, plan
from pruning.planning.plan import own_memory

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
}
"""Llama 3 and 3.1."""


def measure(size: str, ratio: float, tokens: int) -> dict[str, Any]:
    """The plan, in numbers."""
    settings = Settings(ratio=ratio, calibration_tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA | SIZES[size]), encoding="utf-8")
        before, start = own_memory(), time.perf_counter()
        found = plan(folder, settings=settings, device="cpu")
        seconds, grown = time.perf_counter() - start, own_memory() - before
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
        "stages": {
            stage.name: {
                "predicted_hours": round(stage.seconds / 3600, 2),
                "operations": {n: float(f"{x:.4g}") for n, x in stage.operations._asdict().items() if x},
            }
            for stage in found.stages
        },
    }


def main() -> None:
    parser = argument_parser("benchmarks.speed.plans", __doc__, "cpu.jsonl")
    parser.add_argument("--size", choices=SIZES, default="70B")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=57_344)
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = {"model": f"Llama {args.size}", "ratio": args.ratio, "tokens": args.tokens}
    rerun = command(
        "benchmarks.speed.plans", size=args.size, ratio=args.ratio, tokens=args.tokens, seed=args.seed
    )
    found = row("plan", rerun, case, measure(args.size, args.ratio, args.tokens))
    append([found], args.out)
    print(json.dumps(found["case"]), json.dumps(found["result"]))


if __name__ == "__main__":
    main()
