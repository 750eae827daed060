"""The public functions as torch operators, so that `torch.compile` and `torch.export` keep a caller's graph whole.

`torch.ops.mikernels.*` take tensors on the device to compute on, and resolved options (`mikernels.options`). They are
isolated from torch's global state here, where `torch.compile` does not look.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mikernels.engine import compute_blocks
from mikernels.isolation import isolated
from mikernels.options import SCHEMA, Options, from_operator
from mikernels.pairs import Block, Pairs, best_pairs, fill_matrix, merged, pairs_over
from mikernels.provenance import provenance_of, remember
from mikernels.ranks import ALONE, Ranks, checksum
from mikernels.validation import refuse_meta

INPUTS = f"Tensor x, Tensor? y, {SCHEMA}"

Progress = Callable[[Block], object]
"""Is told every block that is complete."""

PAIRS = "(Tensor, Tensor, Tensor)"
# They wait for the device and ask for its free memory, neither of which a CUDA graph can record.
TAGS = (torch.Tag.cudagraph_unsafe,)

torch.library.define("mikernels::mutual_information", f"({INPUTS}) -> Tensor", tags=TAGS)
torch.library.define("mikernels::mutual_information_out", f"({INPUTS}, Tensor(a!) out) -> ()", tags=TAGS)
torch.library.define("mikernels::top_pairs", f"({INPUTS}, int k) -> {PAIRS}", tags=TAGS)
torch.library.define("mikernels::pairs_above", f"({INPUTS}, float threshold) -> {PAIRS}", tags=TAGS)


def _empty_matrix(x: Tensor, y: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[1], (x if y is None else y).shape[1], dtype=torch.float32)


def _empty_pairs(x: Tensor, n_pairs: int | torch.SymInt) -> Pairs:
    first, second = (x.new_empty(n_pairs, dtype=torch.int64) for _ in range(2))
    return Pairs(first, second, x.new_empty(n_pairs, dtype=torch.float32))


@isolated()
def matrix(
    x: Tensor,
    y: Tensor | None,
    options: Options,
    ranks: Ranks = ALONE,
    out: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The matrix for resolved options.

    Args:
        ranks: processes that share out its blocks; all of them get the whole matrix.
        out: to write the matrix to, `[N, K]` float32 on the device of x.
        progress: is told every block after it is stored.

    Raises:
        ValueError: see `mikernels.mutual_information`; or the processes have other samples or options.
        RankError: another process cannot be reached.
    """
    check_same(x, y, options, ranks)
    mi = _empty_matrix(x, y) if out is None else out
    if ranks.count > 1:
        mi.fill_(-0.0)  # plus which every number is itself
    note = provenance_of(options, len(x))
    blocks = _told(compute_blocks(x, y, options, note, ranks), progress)
    fill_matrix(blocks, mi, symmetric=y is None)
    ranks.add(mi)
    remember(mi, note)
    return mi


@isolated()
def best(
    x: Tensor,
    y: Tensor | None,
    options: Options,
    k: int,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> Pairs:
    """The k best pairs, as `matrix`."""
    return _pairs(x, y, options, partial(best_pairs, k=k, symmetric=y is None), ranks, progress, k=k)


@isolated()
def above(
    x: Tensor,
    y: Tensor | None,
    options: Options,
    threshold: float,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> Pairs:
    """The pairs above a threshold, as `matrix`."""
    collect = partial(pairs_over, threshold=threshold, symmetric=y is None)
    return _pairs(x, y, options, collect, ranks, progress, threshold=threshold)


def _pairs(
    x: Tensor,
    y: Tensor | None,
    options: Options,
    collect: Callable[[Iterable[Block]], Pairs],
    ranks: Ranks,
    progress: Progress | None,
    *,
    k: int | None = None,
    threshold: float | None = None,
) -> Pairs:
    check_same(x, y, options | {"k": k, "threshold": threshold}, ranks)
    note = provenance_of(options, len(x))
    blocks = _told(compute_blocks(x, y, options, note, ranks), progress)
    pairs = of_all(collect, blocks, x.device, ranks, k)
    remember(pairs.mi, note)
    return pairs


def of_all(
    collect: Callable[[Iterable[Block]], Pairs],
    blocks: Iterator[Block],
    device: torch.device,
    ranks: Ranks,
    k: int | None = None,
) -> Pairs:
    """What `collect` finds in the blocks of all processes; the first k."""
    if ranks.count == 1:
        return collect(blocks)
    first = next(blocks, None)  # of few blocks this process may have none
    own = [] if first is None else [t.cpu() for t in collect(chain([first], blocks))]
    parts = [Pairs(*(t.to(device) for t in found)) for found in ranks.gather(own) if found]
    return merged(parts, k)


def _told(blocks: Iterator[Block], progress: Progress | None) -> Iterator[Block]:
    """The blocks, with each told to `progress` once the next one is asked for."""
    for block in blocks:
        yield block
        if progress is not None:
            progress(block)


def check_same(x: Tensor, y: Tensor | None, given: Mapping[str, object], ranks: Ranks) -> None:
    """Raise unless all processes compute the same.

    Raises:
        ValueError: one has other samples or options.
    """
    if ranks.count > 1:
        if x.is_meta:
            refuse_meta("x")
        ranks.check_same({**given, "x": checksum(x), "y": None if y is None else checksum(y)})


@torch.library.impl("mikernels::mutual_information", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *options: Any) -> Tensor:
    return matrix(x, y, from_operator(options))


@torch.library.register_fake("mikernels::mutual_information")
def _(x: Tensor, y: Tensor | None, *options: Any) -> Tensor:
    return _empty_matrix(x, y)


@torch.library.impl("mikernels::mutual_information_out", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *options_and_out: Any) -> None:
    *options, out = options_and_out
    matrix(x, y, from_operator(options), out=out)


@torch.library.register_fake("mikernels::mutual_information_out")
def _(x: Tensor, y: Tensor | None, *options_and_out: Any) -> None:
    pass


@torch.library.impl("mikernels::top_pairs", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *options_and_k: Any) -> tuple[Tensor, ...]:
    *options, k = options_and_k
    return tuple(best(x, y, from_operator(options), k))


@torch.library.register_fake("mikernels::top_pairs")
def _(x: Tensor, y: Tensor | None, *options_and_k: Any) -> tuple[Tensor, ...]:
    n = x.shape[1]
    n_pairs = n * (n - 1) // 2 if y is None else n * y.shape[1]
    return tuple(_empty_pairs(x, torch.sym_min(options_and_k[-1], n_pairs)))


@torch.library.impl("mikernels::pairs_above", "CompositeExplicitAutograd")
def _(x: Tensor, y: Tensor | None, *options_and_threshold: Any) -> tuple[Tensor, ...]:
    *options, threshold = options_and_threshold
    return tuple(above(x, y, from_operator(options), threshold))


@torch.library.register_fake("mikernels::pairs_above")
def _(x: Tensor, y: Tensor | None, *options_and_threshold: Any) -> tuple[Tensor, ...]:
    return tuple(_empty_pairs(x, torch.library.get_ctx().new_dynamic_size()))
