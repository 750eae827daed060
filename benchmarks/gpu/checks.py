"""Accuracy and speed of the Triton kernels on the present device."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.cost import CHIP, expected, floor, work
from benchmarks.record import quantiles, timed
from benchmarks.speed.samples import gated_activations
from mikernels import mutual_information
from mikernels.statistics.reliability import reliability_of_halves
from mikernels.transforms import transform_samples
from mikernels.triton_impl import chip_of, chip_precisions


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
    Case("grid", 8, 40, "int8"),
    Case("grid", 8, 40, "fp16"),
    Case("kde", 4, 20, "fp16"),
    Case("renyi2", 4, 20, "fp16"),
]

MAX_ERROR = {"int8": 2e-3, "fp8": 3e-3, "fp16": {"grid": 1e-3, "kde": 1e-4, "renyi2": 1e-3}, "fp32": 1e-5}
"""Tolerated error against float64, nats."""


def data(kind: str, m: int, n: int, device: str, activations: Path | None = None) -> Tensor:
    """`[M, N]` samples: mixed Gaussian factors, heavy-tailed products of them, or real activations."""
    if kind == "real":
        return torch.load(activations, weights_only=True)[:m, :n].to(device)
    if kind == "heavy-tailed":
        return gated_activations(m, n, 0).to(device)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(m, 32, generator=generator) @ torch.randn(32, n, generator=generator) / 32**0.5
    return (mixed + torch.randn(m, n, generator=generator)).to(device)


def check_accuracy(device: str, dry: bool, activations: Path | None) -> list[dict[str, Any]]:
    """Check every estimator and precision against float64, and that another memory budget gives the same bits."""
    m, n = (16, 4) if dry else (1024, 200)
    rows = []
    for kind in ["gaussian", "heavy-tailed"] + (["real"] if activations else []):
        x = data(kind, m, n, device, activations)
        for estimator in ("grid", "kde", "renyi2"):
            exact = mutual_information(x.cpu(), estimator=estimator, impl="reference")
            for precision in chip_precisions(torch.device(device)):
                if precision == "int8" and estimator != "grid":
                    continue
                options = {"estimator": estimator, "precision": precision, "impl": "triton"}
                mi = mutual_information(x, **options)
                again = mutual_information(x, **options, memory_budget=64 * 2**20)
                error = float((mi.cpu() - exact).abs().max())
                tolerated = MAX_ERROR[precision]
                tolerated = tolerated[estimator] if isinstance(tolerated, dict) else tolerated
                row = {
                    "part": "accuracy",
                    "case": {"data": kind, "M": m, "N": n, "estimator": estimator, "precision": precision},
                    "max_error_nats": error,
                    "spearman": reliability_of_halves(mi.cpu(), exact, m).halves,
                    "same_bits_with_another_budget": torch.equal(mi, again),
                }
                # With few samples 8-bit operands exceed the tolerance; the tests check the bound that applies.
                row["ok"] = bool(torch.equal(mi, again)) and (dry or error <= tolerated)
                if precision == "int8":
                    cpu = mutual_information(x.cpu(), precision="int8", impl="torch")
                    row["max_difference_to_cpu"] = float((mi.cpu() - cpu).abs().max())
                    row["ok"] = row["ok"] and row["max_difference_to_cpu"] < 1e-5
                rows.append(row)
                print(
                    f"  {kind:13}{estimator:8}{precision:6}error {error:.1e} nats  Spearman {row['spearman']:.5f}"
                    f"  {'' if row['ok'] else 'FAILED'}",
                    flush=True,
                )
    return rows


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Seconds of each call after one warm-up call."""
    return [timed(call, device)[1] for _ in range(repeats + 1)][1:]


def matmul_rate(device: str, size: int, precision: str) -> float:
    """Operations per second of torch's own product of square matrices."""
    a = torch.randint(0, 128, (size, size), dtype=torch.int8, device=device)
    if precision == "int8":
        call: Callable[[], Tensor] = lambda: torch._int_mm(a, a.t())  # noqa: E731
    elif precision == "fp8":
        b, one = (a.half() / 128).to(torch.float8_e4m3fn), torch.ones((), device=device)
        call = lambda: torch._scaled_mm(b, b.t(), one, one, out_dtype=torch.float16)  # noqa: E731
    else:
        c = (a.float() / 128).to(torch.float16 if precision == "fp16" else torch.float32)
        call = lambda: c @ c.t()  # noqa: E731
    return 2 * size**3 / statistics.median(seconds_of(call, device, 10))


def measure_speed(
    device: str, cases: list[Case], deadline: float, autotune: bool
) -> Iterator[dict[str, Any]]:
    """Time whole calls, preparation of operands included, beside `torch.matmul` and the floor of the chip."""
    family = chip_of(torch.device(device))
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    chip = next((chip for chip in CHIP if chip in name), None)
    for case in cases:
        if time.monotonic() > deadline:
            print(f"  not reached: {case}")
            continue
        if case.precision not in chip_precisions(torch.device(device)):
            continue
        x = data("gaussian", case.m, case.n, device)
        roof, same = (
            matmul_rate(device, 8192 if device == "cuda" else 64, p) for p in ("fp16", case.precision)
        )
        options = {"estimator": case.estimator, "nodes": case.nodes, "precision": case.precision}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = seconds_of(
            lambda x=x, o=options: mutual_information(x, impl="triton", autotune=autotune, **o),
            device,
            1 if device == "cpu" else 5 if case.n < 20000 else 2,
        )
        median = statistics.median(times)
        # Operations that the estimate needs, each pair once; the surplus of tiles on the diagonal does not count.
        inner = {"grid": case.nodes**2 * case.m, "kde": case.m**2, "renyi2": case.m**2 / 2}[case.estimator]
        rate = case.n * (case.n + 1) * inner / median
        row = {
            "part": "speed",
            "case": case._asdict() | {"autotune": autotune},
            "seconds": quantiles(times),
            "operations_per_second": rate,
            "matmul_fp16_flop_per_second": roof,
            "share_of_matmul_fp16": rate / roof,
            "matmul_same_precision_operations_per_second": same,
            "share_of_matmul_same_precision": rate / same,
            "pairs_per_second": case.n * (case.n - 1) / 2 / median,
            "counted": work(*case[:4], family, case.nodes)._asdict(),
            "ok": True,
        }
        if chip is not None:
            least, limit = floor(*case[:4], chip, case.nodes)
            row |= {"predicted_floor_seconds": least, "binds": limit}
            row |= {"expected_seconds": expected(*case[:4], chip, case.nodes)[0]}
        if device == "cuda":
            row["peak_memory_mb"] = (torch.cuda.max_memory_allocated() - x.nbytes) / 1e6
        print(
            f"  {case.estimator:8}N={case.n:<6}M={case.m:<6}{case.precision:6}{median * 1e3:9.2f} ms  "
            f"{rate / 1e12:7.1f} Tops/s  {rate / roof:5.0%} of matmul fp16  {rate / same:5.0%} of {case.precision}"
            + (f"  floor {row['predicted_floor_seconds'] * 1e3:.1f} ms ({row['binds']})" if chip else ""),
            flush=True,
        )
        yield row


def compare_broadcasting(device: str, dry: bool) -> dict[str, Any]:
    """Time `kde` beside plain broadcasting in torch, the obvious implementation, and compare their values.

    One row of variables at a time: `[N, N, M, M]` float32 at once would take 64 GB at N = 128.
    """
    m, n = (16, 6) if dry else (1024, 128)
    x = data("gaussian", m, n, device)
    h = m ** (-1 / 6)

    def broadcast() -> Tensor:
        s = transform_samples(x, "rank", seed=0).scores()  # [N, M]
        k = torch.exp(-0.5 * ((s[:, :, None] - s[:, None, :]) / h) ** 2)  # [N, M, M]
        margin = k.sum(2)
        rows = [
            (m * (k[i] * k).sum(2) / (margin[i] * margin)).log().mean(1) for i in range(n)
        ]  # each [N, M, M]
        return torch.stack(rows)

    def kernel() -> Tensor:
        return mutual_information(x, estimator="kde", impl="triton")

    theirs, ours = (seconds_of(call, device, 1 if dry else 3) for call in (broadcast, kernel))
    difference = float((broadcast() - kernel()).abs().max())
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
