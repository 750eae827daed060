"""Run everything that needs a GPU in one call: accuracy, speed, memory checks and tests. Needs no network.

    python -m benchmarks.gpu [--activations FILE] [--parts accuracy tests] [--out FILE]
    python -m benchmarks.gpu --dry-run      # tiny shapes in Triton's interpreter, nothing is recorded

Prints a table and appends rows to `results/gpu.jsonl`: errors; times beside torch's product in fp16 and in the same
precision; what each choice of the kernels is worth; rates of 8-bit products by tile size; figures of `ncu`. Takes less
than 9 minutes: each part has a time limit and reports what it did not reach. A failed check gives exit status 1.
"""

import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, append, argument_parser, command, row, timed

Results = Iterable[dict[str, Any]]

SECONDS = 520  # no part runs longer than this after the start
SPEED_SECONDS = 210  # no speed measurement starts later than this,
CHOICES_SECONDS = 270  # and no comparison of choices
PROFILER_SECONDS = 40
SANITIZER_SECONDS = 60
TESTS_SECONDS = 180
TESTS = ("tests/mikernels", "tests/pruning", "tests/integrations")
TEST_PROCESSES = 14  # each has a CUDA context, which takes half a gigabyte of the GPU's memory
PARTS = ("accuracy", "speed", "choices", "profiler", "sanitizer", "tests")
METRICS = (
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__time_duration.sum",
)
"""Of the default kernel: how busy the tensor cores, the multiprocessors and L2 are."""


def run_tests(limit: float) -> dict[str, Any]:
    """Run the tests on a machine with a GPU: kernels, and commands without `--device`, take it."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    if find_spec("xdist"):
        words += ["--dist=worksteal", "-n", str(min(TEST_PROCESSES, os.cpu_count() or 1))]
    return run_process("tests", words, min(TESTS_SECONDS, limit))


def run_profiler(limit: float) -> dict[str, Any]:
    """Figures of `ncu` for the default kernel; many machines do not allow them."""
    script = (
        "import torch; from mikernels import mutual_information as f\n"
        "f(torch.randn(4096, 4096, device='cuda'), precision='int8', impl='triton')\n"
    )
    options = ["-k", "regex:grid_kernel", "--launch-count", "1", "--csv", "--metrics", ",".join(METRICS)]
    return run_tool("ncu", "profiler", [*options, sys.executable, "-c", script], min(PROFILER_SECONDS, limit))


def run_sanitizer(limit: float) -> dict[str, Any]:
    """Run every kernel at a small size under `compute-sanitizer`."""
    script = (
        "import torch; from mikernels import mutual_information as f\n"
        "x = torch.randn(37, 41, device='cuda')\n"
        "for e in ('grid', 'kde', 'renyi2'): f(x, estimator=e); f(x[:, :3], x, estimator=e)\n"
        "f(x, transform='standardize'); f(x, nodes=100); f(x, precision='fp32')\n"
    )
    options = ["--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script]
    return run_tool("compute-sanitizer", "sanitizer", options, min(SANITIZER_SECONDS, limit))


def run_tool(name: str, part: str, options: list[str], limit: float) -> dict[str, Any]:
    """Run a tool of CUDA; a machine without it gives neither success nor failure."""
    tool = shutil.which(name) or f"/usr/local/cuda/bin/{name}"
    if not Path(tool).exists():
        return {"part": part, "ok": None, "said": f"{name} was not found"}
    return run_process(part, [tool, *options], limit)


def run_process(part: str, words: list[str], limit: float) -> dict[str, Any]:
    if limit <= 0:
        return {"part": part, "ok": None, "said": "no time was left"}
    try:
        done, seconds = timed(
            lambda: subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
        )
    except subprocess.TimeoutExpired:
        return {"part": part, "ok": None, "said": f"did not finish within {limit:.0f} s"}
    lines = (done.stdout + done.stderr).strip().splitlines()
    for line in lines[-300:] if done.returncode else lines[-1:]:
        print(f"  {line}")
    said = lines[-len(METRICS) :] if part == "profiler" else lines[-1] if lines else ""
    ok = done.returncode == 0 or (None if part == "profiler" else False)
    return {"part": part, "ok": ok, "said": said, "seconds": round(seconds, 1)}


def main() -> int:
    parser = argument_parser("benchmarks.gpu", __doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--autotune", action="store_true", help="time the tile sizes that autotuning chooses")
    parser.add_argument("--activations", type=Path, help="a torch file with one tensor [M, N]")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.jsonl")
    args = parser.parse_args()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read at the first import of triton
    import torch

    from benchmarks.gpu import checks, choices

    if not args.dry_run and not torch.cuda.is_available():
        print("expected a GPU, got none; use --dry-run to try the script without one")
        return 1
    device = "cpu" if args.dry_run else "cuda"
    start = time.monotonic()

    def speed() -> Results:
        cases = checks.TINY if args.dry_run else checks.SPEED
        yield from checks.measure_speed(device, cases, start + SPEED_SECONDS, args.autotune)
        yield checks.compare_broadcasting(device, args.dry_run)

    def process(run: Callable[[float], dict[str, Any]]) -> Callable[[], Results]:
        return lambda: [] if args.dry_run else [run(start + SECONDS - time.monotonic())]

    parts: dict[str, tuple[str, Callable[[], Results]]] = {
        "accuracy": (
            "accuracy against float64",
            lambda: checks.check_accuracy(device, args.dry_run, args.activations),
        ),
        "speed": ("speed of whole calls", speed),
        "choices": (
            "choices: time, and as a multiple of the first line's",
            lambda: choices.compare_choices(device, args.dry_run, start + CHOICES_SECONDS),
        ),
        "profiler": ("ncu", process(run_profiler)),
        "sanitizer": ("compute-sanitizer", process(run_sanitizer)),
        "tests": ("tests", process(run_tests)),
    }
    chosen = None if tuple(args.parts) == PARTS else args.parts
    rerun = command("benchmarks.gpu", autotune=args.autotune, activations=args.activations, parts=chosen)
    ok: list[bool | None] = []
    for name in args.parts:
        title, part = parts[name]
        print(title, flush=True)
        for found in until_an_error(name, part):
            ok.append(found["ok"])
            if not args.dry_run:  # at once, so that an error cannot lose it
                benchmark, case = f"gpu-{found.pop('part')}", found.pop("case", {})
                versions = {"triton": version("triton")}
                append([row(benchmark, rerun, case, found, versions, device="cuda")], args.out)
    failed = ok.count(False)
    print(f"{len(ok)} results, {failed} failed, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


def until_an_error(name: str, part: Callable[[], Results]) -> Results:
    """The results of a part; the last one tells of the error that ended it, which the other parts do not have."""
    try:
        yield from part()
    except Exception as error:
        traceback.print_exc()
        yield {"part": name, "ok": False, "said": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
