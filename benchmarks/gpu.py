"""Everything that only a GPU can show, in one call: tests, memory checks, accuracy, speed. No network.

    python -m benchmarks.gpu [--activations FILE] [--results FILE]
    python -m benchmarks.gpu --dry-run      # tiny shapes in Triton's interpreter, nothing recorded

A table is printed, and rows of `benchmarks.record` are appended to `results/gpu.jsonl`. Takes under 9 minutes on
an H100: each part has its share, and what is not reached is said so. The exit status is 1 where a check failed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

TESTS_SECONDS = 150
SANITIZER_SECONDS = 60


class Case(NamedTuple):
    estimator: str
    n: int
    m: int
    precision: str
    nodes: int = 16


SPEED = [
    Case("grid", 11008, 4096, "int8"),
    Case("grid", 11008, 4096, "fp16"),
    Case("grid", 11008, 4096, "fp8"),
    Case("kde", 11008, 1024, "fp16"),
    Case("kde", 11008, 1024, "fp8"),
    Case("renyi2", 11008, 1024, "fp16"),
    Case("renyi2", 11008, 1024, "fp8"),
    Case("grid", 28672, 4096, "int8"),  # Llama-3-70B
]
TINY = [
    Case("grid", 24, 40, "int8"),
    Case("grid", 24, 40, "fp16"),
    Case("kde", 8, 20, "fp16"),
    Case("renyi2", 8, 20, "fp16"),
]

TARGET = {"int8": 2e-3, "fp8": 2e-3, "fp16": {"grid": 1e-3, "kde": 1e-4, "renyi2": 1e-3}, "fp32": 1e-5}
"""Largest error against float64, nats."""


def run_tests() -> dict[str, Any]:
    """The tests of `mikernels` on the GPU, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/mikernels", "-p", "no:cacheprovider"]
    return run_process("tests", command, TESTS_SECONDS)


def run_sanitizer() -> dict[str, Any]:
    """`compute-sanitizer` over every kernel at a small size."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"part": "sanitizer", "ok": None, "said": "compute-sanitizer was not found"}
    script = (
        "import torch; from mikernels import mutual_information as f\n"
        "x = torch.randn(37, 41, device='cuda')\n"
        "for e in ('grid', 'kde', 'renyi2'): f(x, estimator=e); f(x[:, :3], x, estimator=e)\n"
        "f(x, transform='standardize'); f(x, nodes=100); f(x, precision='fp32')\n"
    )
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script]
    return run_process("sanitizer", command, SANITIZER_SECONDS)


def run_process(part: str, command: list[str], limit: float) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"part": part, "ok": None, "said": f"not ended within {limit:.0f} s"}
    lines = (done.stdout + done.stderr).strip().splitlines()
    for line in lines[-30:] if done.returncode else lines[-1:]:
        print(f"  {line}")
    return {
        "part": part,
        "ok": done.returncode == 0,
        "said": lines[-1] if lines else "",
        "seconds": round(time.perf_counter() - start, 1),
    }


def data(kind: str, m: int, n: int, device: str, activations: Path | None) -> Any:
    """`[M, N]` samples: Gaussian factors, their heavy-tailed products, or real activations."""
    import torch

    from benchmarks.layer import activations as gated

    if kind == "real":
        return torch.load(activations, weights_only=True)[:m, :n].to(device)
    if kind == "heavy-tailed":
        return gated(m, n, 0).to(device)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(m, 32, generator=generator) @ torch.randn(32, n, generator=generator) / 32**0.5
    return (mixed + torch.randn(m, n, generator=generator)).to(device)


def check_accuracy(device: str, dry: bool, activations: Path | None) -> list[dict[str, Any]]:
    """Errors of every estimator and precision against float64, and the same bits from run to run and budget."""
    import torch

    from mikernels import mutual_information
    from mikernels.triton_impl import chip_precisions

    m, n = (24, 12) if dry else (1024, 200)
    rows = []
    for kind in ["gaussian", "heavy-tailed"] + (["real"] if activations else []):
        x = data(kind, m, n, device, activations)
        for estimator in ("grid", "kde", "renyi2"):
            exact = mutual_information(x.cpu(), estimator=estimator, impl="reference")
            above = torch.triu_indices(n, n, 1).unbind()
            for precision in chip_precisions(torch.device(device)):
                if precision == "int8" and estimator != "grid":
                    continue
                keywords = {"estimator": estimator, "precision": precision, "impl": "triton"}
                mi = mutual_information(x, **keywords)
                again = mutual_information(x, **keywords, memory_budget=64 * 2**20)
                error = float((mi.cpu() - exact).abs().max())
                target = TARGET[precision]
                target = target[estimator] if isinstance(target, dict) else target
                row = {
                    "part": "accuracy",
                    "case": {"data": kind, "M": m, "N": n, "estimator": estimator, "precision": precision},
                    "max_error_nats": error,
                    "spearman": spearman(mi.cpu()[above], exact[above]),
                    "same_bits_with_another_budget": torch.equal(mi, again),
                }
                # Eight bits and few samples are checked by the tests, with the bound that holds there.
                row["ok"] = bool(torch.equal(mi, again)) and (dry or error <= target)
                if precision == "int8":
                    cpu = mutual_information(x.cpu(), precision="int8", impl="torch")
                    row["max_difference_to_cpu"] = float((mi.cpu() - cpu).abs().max())
                    row["ok"] = row["ok"] and row["max_difference_to_cpu"] < 1e-5
                rows.append(row)
                print(
                    f"  {kind:13}{estimator:8}{precision:6}error {error:.1e} nats  Spearman {row['spearman']:.5f}"
                    f"  {'' if row['ok'] else 'NOT AS IT SHOULD BE'}",
                    flush=True,
                )
    return rows


def spearman(a: Any, b: Any) -> float:
    import torch

    ranks = torch.stack([v.argsort().argsort().double() for v in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Wall seconds of each call with the device idle before and after; the first call is not counted."""
    import torch

    times = []
    for repeat in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat > 0:
            times.append(time.perf_counter() - start)
    return times


def matmul_rate(device: str, size: int) -> float:
    """FLOP/s of `torch.matmul` in fp16."""
    import torch

    a, b = (torch.randn(size, size, device=device).half() for _ in range(2))
    return 2 * size**3 / statistics.median(seconds_of(lambda: a @ b, device, 10))


def measure_speed(device: str, cases: list[Case], deadline: float, autotune: bool) -> list[dict[str, Any]]:
    """Whole calls, ranks and panels included, beside torch.matmul in the same run and the floor of the chip."""
    import torch

    from benchmarks.cost import CHIP, floor, work
    from benchmarks.record import quantiles
    from mikernels import mutual_information
    from mikernels.triton_impl import chip_of, chip_precisions

    family = chip_of(torch.device(device))
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    chip = next((known for known in CHIP if known in name), None)
    rows = []
    for case in cases:
        if time.monotonic() > deadline:
            print(f"  not reached: {case}")
            continue
        if case.precision not in chip_precisions(torch.device(device)):
            continue
        x = data("gaussian", case.m, case.n, device, None)
        roof = matmul_rate(device, 8192 if device == "cuda" else 64)
        keywords = {"estimator": case.estimator, "nodes": case.nodes, "precision": case.precision}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = seconds_of(
            lambda x=x, k=keywords: mutual_information(x, impl="triton", autotune=autotune, **k),
            device,
            5 if case.n < 20000 else 2,
        )
        median = statistics.median(times)
        # Operations that the estimate needs, each pair once: what tiles on the diagonal do too much is not counted.
        inner = {"grid": case.nodes**2 * case.m, "kde": case.m**2, "renyi2": case.m**2 / 2}[case.estimator]
        rate = case.n * (case.n + 1) * inner / median
        done = work(case.estimator, case.n, case.m, case.precision, family, case.nodes)
        row = {
            "part": "speed",
            "case": case._asdict() | {"autotune": autotune},
            "seconds": quantiles(times),
            "operations_per_second": rate,
            "matmul_fp16_flop_per_second": roof,
            "share_of_matmul_fp16": rate / roof,
            "counted": done._asdict(),
            "ok": True,
        }
        if chip is not None:
            least, binding = floor(case.estimator, case.n, case.m, case.precision, chip, case.nodes)
            row |= {"predicted_floor_seconds": least, "binds": binding}
        if device == "cuda":
            row["peak_memory_mb"] = (torch.cuda.max_memory_allocated() - x.nbytes) / 1e6
        rows.append(row)
        print(
            f"  {case.estimator:8}N={case.n:<6}M={case.m:<6}{case.precision:6}{median * 1e3:9.2f} ms  "
            f"{rate / 1e12:7.1f} Tops/s  {rate / roof:5.0%} of matmul fp16"
            + (f"  floor {row['predicted_floor_seconds'] * 1e3:.1f} ms ({row['binds']})" if chip else ""),
            flush=True,
        )
    return rows


def against_broadcasting(device: str, dry: bool) -> dict[str, Any]:
    """What a user would write, at the largest N that fits, against `kde` at the same size."""
    import torch

    from benchmarks.record import quantiles
    from mikernels import mutual_information
    from mikernels.transforms import transform_samples

    m, n = (
        (16, 6) if dry else (1024, 128)
    )  # [N, N, M, M] float32 would be 64 GB at 128: row by row of variables
    x = data("gaussian", m, n, device, None)
    h = m ** (-1 / 6)

    def broadcast() -> Any:
        s = transform_samples(x, "rank", seed=0).scores()  # [N, M]
        k = torch.exp(-0.5 * ((s[:, :, None] - s[:, None, :]) / h) ** 2)  # [N, M, M]
        margin = k.sum(2)
        rows = [
            (m * (k[i] * k).sum(2) / (margin[i] * margin)).log().mean(1) for i in range(n)
        ]  # each [N, M, M]
        return torch.stack(rows)

    theirs = seconds_of(broadcast, device, 3)
    ours = seconds_of(lambda: mutual_information(x, estimator="kde", impl="triton"), device, 3)
    difference = float((broadcast() - mutual_information(x, estimator="kde", impl="triton")).abs().max())
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"  broadcasting torch, N={n} M={m}: {ratio:.0f} times slower, difference {difference:.1e} nats")
    return {
        "part": "broadcasting",
        "case": {"N": n, "M": m},
        "seconds": quantiles(ours),
        "seconds_broadcasting": quantiles(theirs),
        "times_slower": ratio,
        "max_difference_nats": difference,
        "ok": difference < 1e-3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--autotune", action="store_true", help="time the tile sizes that autotuning chooses")
    parser.add_argument("--activations", type=Path, help="a torch file with one tensor [M, N]")
    parser.add_argument("--results", type=Path, help="default: results/gpu.jsonl")
    args = parser.parse_args()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    import torch

    from benchmarks.record import RESULTS, append, row

    if not args.dry_run and not torch.cuda.is_available():
        print("expected a GPU, got none; --dry-run tries the script without one")
        return 1
    device = "cpu" if args.dry_run else "cuda"
    start = time.monotonic()
    found: list[dict[str, Any]] = []
    print("accuracy against float64")
    found += check_accuracy(device, args.dry_run, args.activations)
    print("speed of whole calls")
    cases = TINY if args.dry_run else SPEED
    found += measure_speed(device, cases, start + 240, args.autotune)
    found.append(against_broadcasting(device, args.dry_run))
    if not args.dry_run:
        print("compute-sanitizer")
        found.append(run_sanitizer())
        print("tests")
        found.append(run_tests())
        options = [f"--{k} {v}" for k, v in vars(args).items() if v not in (None, False)]
        command = " ".join(["python -m benchmarks.gpu", *options])
        versions = {"triton": version("triton")}
        rows = [
            row(f"gpu-{r.pop('part')}", command, r.pop("case", {}), r, versions, device="cuda") for r in found
        ]
        append(rows, args.results or RESULTS / "gpu.jsonl")
        found = [r["result"] for r in rows]
    failed = sum(r["ok"] is False for r in found)
    print(f"{len(found)} results, {failed} not as they should be, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
