"""Run everything that needs a GPU in one call: accuracy, speed, memory checks and tests. Needs no network.

    python -m benchmarks.gpu [--activations FILE] [--out FILE]
    python -m benchmarks.gpu --dry-run      # tiny shapes in Triton's interpreter, nothing is recorded

Prints a table and appends rows to `results/gpu.jsonl`. Takes less than 9 minutes on an H100: each part has a time
limit and reports what it did not reach. A failed check gives exit status 1.
"""

import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, append, argument_parser, command, row, timed

TESTS_SECONDS = 150
SANITIZER_SECONDS = 60
SPEED_SECONDS = 240  # no speed measurement starts later than this


def run_tests() -> dict[str, Any]:
    """Run the tests of `mikernels` on the GPU in a process of their own."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "tests/mikernels", "-p", "no:cacheprovider"]
    return run_process("tests", words, TESTS_SECONDS)


def run_sanitizer() -> dict[str, Any]:
    """Run every kernel at a small size under `compute-sanitizer`."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"part": "sanitizer", "ok": None, "said": "compute-sanitizer was not found"}
    script = (
        "import torch; from mikernels import mutual_information as f\n"
        "x = torch.randn(37, 41, device='cuda')\n"
        "for e in ('grid', 'kde', 'renyi2'): f(x, estimator=e); f(x[:, :3], x, estimator=e)\n"
        "f(x, transform='standardize'); f(x, nodes=100); f(x, precision='fp32')\n"
    )
    words = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script]
    return run_process("sanitizer", words, SANITIZER_SECONDS)


def run_process(part: str, words: list[str], limit: float) -> dict[str, Any]:
    try:
        done, seconds = timed(
            lambda: subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
        )
    except subprocess.TimeoutExpired:
        return {"part": part, "ok": None, "said": f"did not finish within {limit:.0f} s"}
    lines = (done.stdout + done.stderr).strip().splitlines()
    for line in lines[-30:] if done.returncode else lines[-1:]:
        print(f"  {line}")
    said = lines[-1] if lines else ""
    return {"part": part, "ok": done.returncode == 0, "said": said, "seconds": round(seconds, 1)}


def main() -> int:
    parser = argument_parser("benchmarks.gpu", __doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--autotune", action="store_true", help="time the tile sizes that autotuning chooses")
    parser.add_argument("--activations", type=Path, help="a torch file with one tensor [M, N]")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.jsonl")
    args = parser.parse_args()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read at the first import of triton
    import torch

    from benchmarks.gpu import checks

    if not args.dry_run and not torch.cuda.is_available():
        print("expected a GPU, got none; use --dry-run to try the script without one")
        return 1
    device = "cpu" if args.dry_run else "cuda"
    start = time.monotonic()
    found: list[dict[str, Any]] = []
    print("accuracy against float64")
    found += checks.check_accuracy(device, args.dry_run, args.activations)
    print("speed of whole calls")
    cases = checks.TINY if args.dry_run else checks.SPEED
    found += checks.measure_speed(device, cases, start + SPEED_SECONDS, args.autotune)
    found.append(checks.compare_broadcasting(device, args.dry_run))
    if not args.dry_run:
        print("compute-sanitizer")
        found.append(run_sanitizer())
        print("tests")
        found.append(run_tests())
        rerun = command("benchmarks.gpu", autotune=args.autotune, activations=args.activations)
        versions = {"triton": version("triton")}
        rows = [
            row(f"gpu-{r.pop('part')}", rerun, r.pop("case", {}), r, versions, device="cuda") for r in found
        ]
        append(rows, args.out)
        found = [r["result"] for r in rows]
    failed = sum(r["ok"] is False for r in found)
    print(f"{len(found)} results, {failed} failed, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
