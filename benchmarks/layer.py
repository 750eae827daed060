"""The MI matrix of one layer: time against `torch.mm` in the same run, error, and memory against the budget.

    python -m benchmarks.layer

Two measurements, each a row in `results/cpu.jsonl`:

* speed: `grid` at N = 1536, 16 nodes, M = 4096 against `torch.mm` in fp32 on a third of its FLOPs, in turn,
  as often as `--repeats` says; beside it the error against the float64 reference on some of the neurons.
* memory: peak resident memory beyond inputs and result at N = 8192, in a process of its own, against the
  budget that was given.
"""

import argparse
import json
import math
import subprocess
import sys
import time

import torch
from torch import Tensor

from benchmarks.record import RESULTS, append, quantiles, row
from mikernels import mutual_information

MATMUL_SIZE = 2048


def activations(n_samples: int, n_variables: int, seed: int) -> Tensor:
    """Heavy-tailed, correlated columns, as gated FFNs have them: products of two linear maps of few factors."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(n_samples, 64, generator=generator)
    gate, up = (factors @ torch.randn(64, n_variables, generator=generator) / 8 for _ in range(2))
    return torch.nn.functional.silu(gate) * up


def flops(n_variables: int, n_samples: int, nodes: int) -> float:
    """Of the upper triangle of `phi^T phi`."""
    return float(nodes * n_variables) ** 2 * n_samples


def speed(n_variables: int, n_samples: int, nodes: int, repeats: int, seed: int) -> dict[str, object]:
    """Times in turn, so that a drift of the machine's speed moves both."""
    x = activations(n_samples, n_variables, seed)
    size = min(MATMUL_SIZE, n_variables)
    a = torch.randn(size, size)
    products = max(1, math.ceil(flops(n_variables, n_samples, nodes) / 3 / (2 * size**3)))
    scale = flops(n_variables, n_samples, nodes) / 3 / (products * 2 * size**3)
    ours: list[float] = []
    matmul: list[float] = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        mi = mutual_information(x, nodes=nodes)
        middle = time.perf_counter()
        for _ in range(products):
            torch.mm(a, a)
        stop = time.perf_counter()
        if repeat > 0:  # the first is the warm-up
            ours.append(middle - start)
            matmul.append((stop - middle) * scale)
    some = slice(0, min(32, n_variables))
    reference = mutual_information(x[:, some], nodes=nodes, impl="reference")
    ratios = [a / b for a, b in zip(ours, matmul, strict=True)]
    return {
        "seconds": quantiles(ours),
        "seconds_of_mm_fp32_on_a_third_of_the_flops": quantiles(matmul),
        "ratio": quantiles(ratios),
        "max_error_nats": float((mi[some, some] - reference).abs().max()),
    }


def memory(n_variables: int, n_samples: int, nodes: int, budget: int) -> dict[str, float]:
    """Peak memory of a fresh process, beyond what it held before and the result."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, (n_variables, n_samples, nodes, budget))],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


MEMORY = """
import json, sys, torch
from mikernels import mutual_information
def peak():
    # Not ru_maxrss, which starts at the peak of the parent process where that was larger.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
n_variables, n_samples, nodes, budget = map(int, sys.argv[1:])
mutual_information(torch.randn(64, 8), nodes=nodes)  # what torch loads on first use
x = torch.randn(n_samples, n_variables)
before = peak()
mi = mutual_information(x, nodes=nodes, memory_budget=budget)
print(json.dumps({"workspace_mb": (peak() - before - mi.nbytes) / 1e6, "budget_mb": budget / 1e6}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = "python -m benchmarks.layer " + " ".join(f"--{k} {v}" for k, v in vars(args).items())
    case = {"estimator": "grid", "N": 1536, "M": 4096, "nodes": 16, "seed": args.seed}
    rows = [row("layer-speed", command, case, speed(1536, 4096, 16, args.repeats, args.seed))]
    case = {"estimator": "grid", "N": 8192, "M": 4096, "nodes": 16, "budget": 2**30}
    rows.append(row("layer-memory", command, case, memory(8192, 4096, 16, 2**30)))
    append(rows, RESULTS / "cpu.jsonl")
    for r in rows:
        print(r["benchmark"], json.dumps(r["case"]), json.dumps(r["result"]))


if __name__ == "__main__":
    main()
