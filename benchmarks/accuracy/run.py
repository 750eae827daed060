"""Estimates of known mutual information, all estimators on the same draws, stored as rows.

    python -m benchmarks.accuracy.run --samples 500 2000 8000 --repeats 20
    python -m benchmarks.accuracy.report

One row of `results/accuracy.jsonl` is one estimator at one number of samples: for every case the truth and
each repeat's estimate in nats, and the seconds that all of them took. The draws depend on nothing but the
seed, the case's name and M.
"""

import argparse
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.accuracy.cases import CASES, Case, Pair
from benchmarks.accuracy.estimators import ESTIMATORS, Estimate, missing_package
from benchmarks.record import RESULTS, append, row


def draws(case: Case, n_samples: int, repeats: int, seed: int) -> Pair:
    """`x, y [M, R]`, one column a repeat."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name}, {n_samples}, {seed}".encode()))
    pairs = [case.draw(generator, n_samples) for _ in range(repeats)]
    x, y = (torch.stack(tensors, dim=1) for tensors in zip(*pairs, strict=True))
    return x, y


def measure(
    estimate: Estimate, cases: Sequence[Case], n_samples: int, repeats: int, seed: int
) -> dict[str, object]:
    """The `result` of a row."""
    by_case: dict[str, object] = {}
    seconds = 0.0
    for case in cases:
        x, y = draws(case, n_samples, repeats, seed)
        start = time.perf_counter()
        estimates: Tensor = estimate(x, y)
        seconds += time.perf_counter() - start
        by_case[case.name] = {
            "half": case.half,
            "truth": round(case.mi, 7),
            "estimates": [round(float(e), 6) for e in estimates],
        }
    return {"cases": by_case, "seconds": round(seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.jsonl")
    args = parser.parse_args()
    for n_samples in args.samples:
        for name in args.estimators:
            package = missing_package(name)
            if package is not None:
                print(f"{name}: skipped, {package} is not installed")
                continue
            case = {"estimator": name, "M": n_samples, "repeats": args.repeats, "seed": args.seed}
            command = (
                f"python -m benchmarks.accuracy.run --samples {n_samples} --repeats {args.repeats} "
                f"--seed {args.seed} --estimators '{name}'"
            )
            result = measure(ESTIMATORS[name], CASES, n_samples, args.repeats, args.seed)
            append([row("accuracy", command, case, result)], args.out)
            print(f"{name}, M = {n_samples}: {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
