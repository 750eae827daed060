"""Joint counts of all pairs, as `adaptive` needs them: pair by pair, many at once, and as a product.

python -m benchmarks.counts

Appends a row `joint-counts` to `results/cpu.jsonl`: seconds for all pairs of N variables of M samples in G x G
cells, from cells that are given. What takes pair by pair is timed on some of them.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import RESULTS, append, quantiles, row
from mikernels.adaptive.refinement import joint_counts
from mikernels.tables.rungs import CELLS
from mikernels.tiles import cut
from mikernels.torch_impl.adaptive_histograms import STRIP
from mikernels.torch_impl.integer import integer_gram

TILE = 32
"""Variables along a tile of the product, whose counts are 4 bytes each."""


def many_at_once(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    """What `adaptive` does: an increment a sample, for a strip of pairs at a time."""
    scaled = x * cells
    for some in cut(len(first), max(1, STRIP // (cells**2 + x.shape[1]))):
        yield joint_counts(scaled.index_select(0, first[some]).add_(x.index_select(0, second[some])), cells)


def one_hot_product(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    """8-bit products of one-hot cells, tiles on and above the diagonal: 2 M G^2 operations a pair."""
    del first, second  # all of them
    one_hot = torch.eye(cells, dtype=torch.int8)[x.t().reshape(-1)].view(x.shape[1], -1)
    tiles = [slice(t.start * cells, t.stop * cells) for t in cut(len(x), TILE)]
    for i, rows in enumerate(tiles):
        for cols in tiles[i:]:
            yield integer_gram(one_hot[:, rows], one_hot[:, cols])


def numpy_histogram2d(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    columns, ends = x.numpy(), [[0, cells], [0, cells]]
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        yield torch.from_numpy(np.histogram2d(columns[i], columns[j], bins=cells, range=ends)[0])


def numpy_bincount(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    columns, scaled = x.numpy(), (x * cells).numpy()
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        yield torch.from_numpy(np.bincount(scaled[i] + columns[j], minlength=cells**2))


def torch_bincount(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    scaled = x * cells
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        yield torch.bincount(scaled[i] + x[j], minlength=cells**2)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Iterator[Tensor]]] = {
    "many at once": many_at_once,
    "one-hot product": one_hot_product,
    "numpy.bincount": numpy_bincount,
    "torch.bincount": torch_bincount,
    "numpy.histogram2d": numpy_histogram2d,
}
PAIR_BY_PAIR = ("numpy.bincount", "torch.bincount", "numpy.histogram2d")


def measure(
    n_variables: int, n_samples: int, cells: int, turns: int, some: int, seed: int
) -> dict[str, object]:
    """Seconds for all pairs by each way, which take turns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(cells, (n_variables, n_samples), generator=generator)
    first, second = torch.triu_indices(n_variables, n_variables, 1)
    few = torch.randperm(len(first), generator=generator)[:some]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns + 1):
        for name, count in WAYS.items():
            pairs = few if name in PAIR_BY_PAIR else slice(None)
            start = time.perf_counter()
            for _ in count(x, first[pairs], second[pairs], cells):
                pass  # as an estimator goes on from some counts to the next
            passed = time.perf_counter() - start
            if turn > 0:  # the first is the warm-up
                seconds[name].append(passed * len(first) / len(first[pairs]))
    return {"pairs_timed_pair_by_pair": len(few)} | {name: quantiles(s) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variables", type=int, default=256)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=1000, help="of those counted pair by pair")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = "python -m benchmarks.counts " + " ".join(f"--{k} {v}" for k, v in vars(args).items())
    rows = []
    for cells in CELLS[:2]:
        case = {"N": args.variables, "M": args.samples, "cells": cells, "seed": args.seed}
        found = measure(args.variables, args.samples, cells, args.turns, args.pairs, args.seed)
        rows.append(row("joint-counts", command, case, found))
        print(json.dumps(case), json.dumps(found), flush=True)
    append(rows, RESULTS / "cpu.jsonl")


if __name__ == "__main__":
    main()
