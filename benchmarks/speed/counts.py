"""Joint counts of all pairs, the inner loop of `adaptive` on a CPU: pair by pair, in strips, and as a product.

    python -m benchmarks.speed.counts

Appends rows `joint-counts` to `results/cpu.jsonl`: seconds for all pairs of N variables of M samples in G x G cells,
given the cells. Methods that work pair by pair are timed on some pairs and extrapolated.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import append, argument_parser, command, quantiles, row
from benchmarks.speed.measure import UNLIMITED, Effort, take_turns
from mikernels.adaptive.histograms import joint_counts
from mikernels.tables.node_shares import gathered
from mikernels.tables.rungs import CELLS
from mikernels.tiling import cut
from mikernels.torch_impl.adaptive_histograms import STRIP
from mikernels.torch_impl.integer import byte_gram

TILE = 32  # variables along a tile of the product, whose counts take 4 bytes each


def many_at_once(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    """The method of `adaptive`: one increment per sample, for a strip of pairs at a time."""
    scaled = x * cells
    for strip in cut(len(first), max(1, STRIP // (cells**2 + x.shape[1]))):
        yield joint_counts(scaled.index_select(0, first[strip]).add_(x.index_select(0, second[strip])), cells)


def one_hot_product(x: Tensor, first: Tensor, second: Tensor, cells: int) -> Iterator[Tensor]:
    """8-bit products of one-hot cells, in tiles on and above the diagonal: 2 M G^2 operations per pair."""
    del first, second  # it always computes all pairs
    one_hot = gathered(torch.eye(cells, dtype=torch.int8), x)
    tiles = cut(len(x), TILE)
    for i, rows in enumerate(tiles):
        for cols in tiles[i:]:
            yield byte_gram(one_hot[:, rows], one_hot[:, cols])


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


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Iterator[Tensor]]] = {
    "many at once": many_at_once,
    "one-hot product": one_hot_product,
    "numpy.bincount": numpy_bincount,
    "torch.bincount": torch_bincount,
    "numpy.histogram2d": numpy_histogram2d,
}
PAIR_BY_PAIR = ("numpy.bincount", "torch.bincount", "numpy.histogram2d")


def measure(
    n_variables: int, n_samples: int, cells: int, turns: int, n_timed: int, seed: int
) -> dict[str, object]:
    """Seconds for all pairs by each method, in turn; methods that work pair by pair are timed on `n_timed` pairs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(cells, (n_variables, n_samples), generator=generator)
    first, second = torch.triu_indices(n_variables, n_variables, 1)
    chosen = torch.randperm(len(first), generator=generator)[:n_timed]
    # Counts are consumed one batch at a time, as an estimator does.
    calls = {
        name: partial(
            lambda count, pairs: deque(count(x, first[pairs], second[pairs], cells), 0), count, pairs
        )
        for name, count in METHODS.items()
        for pairs in [chosen if name in PAIR_BY_PAIR else slice(None)]
    }
    _, seconds, _ = take_turns(calls, Effort(turns, UNLIMITED))
    scale = {name: len(first) / len(chosen) if name in PAIR_BY_PAIR else 1.0 for name in METHODS}
    return {"pairs_timed_pair_by_pair": len(chosen)} | {
        name: quantiles([s * scale[name] for s in found]) for name, found in seconds.items()
    }


def main() -> None:
    parser = argument_parser("benchmarks.speed.counts", __doc__, "cpu.jsonl")
    parser.add_argument("--variables", type=int, default=256)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=1000, help="timed by the methods that work pair by pair")
    args = parser.parse_args()
    options = {name: value for name, value in vars(args).items() if name != "out"}
    rerun = command("benchmarks.speed.counts", **options)
    for cells in CELLS[:2]:
        case = {"N": args.variables, "M": args.samples, "cells": cells, "seed": args.seed}
        result = measure(args.variables, args.samples, cells, args.turns, args.pairs, args.seed)
        append([row("joint-counts", rerun, case, result)], args.out)
        print(json.dumps(case), json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
