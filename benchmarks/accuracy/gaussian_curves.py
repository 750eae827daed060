"""Simulate the table behind calibration, `mikernels/tables/gaussian.json`: mean estimates for Gaussian copulas.

    python -m benchmarks.accuracy.gaussian_curves

Half an hour to an hour on a core. Only needed after a change of an estimator; a test simulates some rows again.
"""

import argparse
import json
import math
from pathlib import Path

import torch

import mikernels.tables
from mikernels.options import grid_floor, make_problem
from mikernels.tables.gaussian import NODES
from mikernels.tuning.calibration import simulated_estimates

FILE = Path(mikernels.tables.__path__[0]) / "gaussian.json"
LARGEST = {"grid": 2**18, "adaptive": 2**18, "kde": 2**12, "renyi2": 2**12}
"""The last two take time that grows as M^2."""
SAMPLES = 2**17
KINK = math.ceil(grid_floor(NODES) ** -6)
"""From here on the bandwidth of `grid` no longer depends on M."""


def sample_counts(estimator: str) -> list[int]:
    """M of the entries: all from 8 to 16, then two for each doubling, and where there is a kink."""
    steps = round(2 * math.log2(LARGEST[estimator] / 8))
    counts = {*range(8, 17), *(round(8 * 2 ** (step / 2)) for step in range(steps + 1))}
    return sorted(counts | {KINK} if estimator == "grid" else counts)


def table_row(estimator: str, n_samples: int) -> list[float]:
    """Mean estimates in nats, over at least 8 and at most 2,048 draws."""
    draws = min(2048, max(8, SAMPLES // n_samples))
    problem = make_problem(estimator, NODES, None, n_samples)
    raw = simulated_estimates(n_samples, problem, torch.device("cpu"), draws)
    return [round(value, 5) for value in raw.tolist()]


def write(table: dict[str, dict[str, list[float]]]) -> None:
    """One line for each M."""
    blocks = []
    for estimator, rows in sorted(table.items()):
        lines = ",\n".join(f'  "{m}": {json.dumps(row)}' for m, row in rows.items())
        blocks.append(f' "{estimator}": {{\n{lines}\n }}')
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--estimators", nargs="+", choices=LARGEST, default=list(LARGEST))
    args = parser.parse_args()
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    for estimator in args.estimators:
        table[estimator] = {}
        for n_samples in sample_counts(estimator):
            table[estimator][str(n_samples)] = table_row(estimator, n_samples)
            print(estimator, n_samples, flush=True)
    write(table)


if __name__ == "__main__":
    main()
