"""Estimate known mutual information with every estimator on the same draws, and store the estimates.

    python -m benchmarks.accuracy
    python -m benchmarks.publish accuracy

A row of `results/accuracy.jsonl` is one estimator at one number of samples: for every case the truth and the
estimate of each repeat in nats, and the total seconds. The draws depend only on the seed, the name of the case
and M.
"""

import zlib
from collections.abc import Sequence

import torch

from benchmarks.accuracy.cases import CASES, Case, Pair
from benchmarks.accuracy.estimators import ESTIMATORS, Estimate, missing_package
from benchmarks.record import append, argument_parser, command, row, timed


def draws(case: Case, n_samples: int, repeats: int, seed: int) -> Pair:
    """`x, y [M, R]`, one column for each repeat."""
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
        estimates, spent = timed(lambda x=x, y=y: estimate(x, y))
        seconds += spent
        by_case[case.name] = {
            "half": case.half,
            "family": case.family,
            "truth": round(case.mi, 7),
            "estimates": [round(float(e), 6) for e in estimates],
        }
    return {"cases": by_case, "seconds": round(seconds, 3)}


def main() -> None:
    parser = argument_parser("benchmarks.accuracy", __doc__, "accuracy.jsonl")
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    args = parser.parse_args()
    for n_samples in args.samples:
        for name in args.estimators:
            if package := missing_package(name):
                print(f"{name}: skipped, {package} is not installed")
                continue
            options = {"repeats": args.repeats, "seed": args.seed}
            rerun = command("benchmarks.accuracy", samples=n_samples, estimators=name, **options)
            result = measure(ESTIMATORS[name], CASES, n_samples, **options)
            append([row("accuracy", rerun, {"estimator": name, "M": n_samples} | options, result)], args.out)
            print(f"{name}, M = {n_samples}: {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
