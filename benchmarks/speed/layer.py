"""The MI matrix of one layer: time and error beside `torch.mm`, and peak memory against the budget.

    python -m benchmarks.speed.layer

Appends two rows to `results/cpu.jsonl`:

* layer-speed: `grid` at N = 1536, M = 4096 and 16 nodes in turn with `torch.mm` in fp32 on a third of its FLOPs, and
  the error against the float64 reference on 32 of the neurons.
* layer-memory: peak resident memory beyond inputs and result at N = 8192, in a fresh process, against the budget.
"""

import json
import math

import torch

from benchmarks.record import append, argument_parser, command, quantiles, row
from benchmarks.speed.cases import Case
from benchmarks.speed.measure import UNLIMITED, Effort, take_turns
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.samples import gated_activations
from mikernels import mutual_information

MATMUL_SIZE = 2048
COMPARED = 32  # neurons whose pairs are compared with the reference


def speed(n_variables: int, n_samples: int, nodes: int, repeats: int, seed: int) -> dict[str, object]:
    """Seconds of both in turn, so that a drift in the speed of the machine affects both."""
    x = gated_activations(n_samples, n_variables, seed)
    size = min(MATMUL_SIZE, n_variables)
    a = torch.randn(size, size)
    third = float(nodes * n_variables) ** 2 * n_samples / 3  # of the FLOPs of the upper triangle of phi^T phi
    products = max(1, math.ceil(third / (2 * size**3)))
    scale = third / (products * 2 * size**3)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, a)

    calls = {"grid": lambda: mutual_information(x, nodes=nodes), "mm": multiply}
    values, seconds, _ = take_turns(calls, Effort(repeats, UNLIMITED))
    matmul = [s * scale for s in seconds["mm"]]
    n = min(COMPARED, n_variables)
    reference = mutual_information(x[:, :n], nodes=nodes, impl="reference")
    return {
        "seconds": quantiles(seconds["grid"]),
        "seconds_of_mm_fp32_on_a_third_of_the_flops": quantiles(matmul),
        "ratio": quantiles([ours / theirs for ours, theirs in zip(seconds["grid"], matmul, strict=True)]),
        "max_error_nats": float((values["grid"][:n, :n] - reference).abs().max()),
    }


def memory(n_variables: int, n_samples: int, nodes: int, budget: int) -> dict[str, float]:
    """Peak memory of a fresh process, beyond what it held before and the float32 result."""
    case = Case(n_variables, n_samples, nodes=nodes, precision="auto")
    peak = peak_bytes(case, "ours", memory_budget=budget)
    return {"workspace_mb": (peak - 4 * n_variables**2) / 1e6, "budget_mb": budget / 1e6}


def main() -> None:
    parser = argument_parser("benchmarks.speed.layer", __doc__, "cpu.jsonl")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    rerun = command("benchmarks.speed.layer", repeats=args.repeats, seed=args.seed)
    case = {"estimator": "grid", "N": 1536, "M": 4096, "nodes": 16, "seed": args.seed}
    rows = [row("layer-speed", rerun, case, speed(1536, 4096, 16, args.repeats, args.seed))]
    case = {"estimator": "grid", "N": 8192, "M": 4096, "nodes": 16, "budget": 2**30}
    rows.append(row("layer-memory", rerun, case, memory(8192, 4096, 16, 2**30)))
    append(rows, args.out)
    for r in rows:
        print(r["benchmark"], json.dumps(r["case"]), json.dumps(r["result"]))


if __name__ == "__main__":
    main()
