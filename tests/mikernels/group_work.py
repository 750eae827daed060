"""What the processes of `test_process_group` do."""

import os

import torch
import torch.distributed as dist

from mikernels import mutual_information, pairs_above, top_pairs
from mikernels.networks import clr_pairs
from mikernels.ranks import Ranks


def samples(columns=40):
    return torch.randn(300, columns, generator=torch.Generator().manual_seed(0))


def inputs(name):
    x = samples()
    return {
        "within": (x, None),
        "between": (x, x[:, :9].square()),
        "ties": (x.round(), None),
        "two variables": (x[:, :2], None),
    }[name]


def share_matrix(group, name, options):
    """The matrix, and how many of its blocks this process has computed."""
    from mikernels import ops

    blocks = []

    def spy(*arguments):
        for block in compute(*arguments):
            blocks.append(block)
            yield block

    compute, ops.compute_blocks = ops.compute_blocks, spy
    try:
        x, y = inputs(name)
        return mutual_information(x, y, process_group=group, **options), len(blocks)
    finally:
        ops.compute_blocks = compute


def share_pairs(group, name, which):
    x, y = inputs(name)
    if which == "clr":
        return clr_pairs(x, y, k=20, process_group=group)
    if which == "top":
        return top_pairs(x, 20, y, process_group=group)
    return pairs_above(x, 0.01, y, process_group=group)


def with_others(group, what):
    """One process has other arguments than the others."""
    x, other, options = samples(), dist.get_rank(group) == 1, {}
    if what == "samples" and other:
        x = x + 1
    if what == "shape" and other:
        x = x[:, 1:]
    if what == "options" and other:
        options = {"nodes": 8}
    if what == "nan" and other:
        x[3, 3] = torch.nan
    if what == "option" and other:
        options = {"nodes": 1}
    return mutual_information(x, process_group=group, **options)


def gather_rows(group):
    """Different numbers of rows, none at one process."""
    ranks = Ranks(group)
    values = torch.full((2 * ranks.index, 3), ranks.index, dtype=torch.bfloat16)
    return ranks.rows(values if len(values) else values.float())


def exchange(group):
    ranks = Ranks(group)
    transposed = torch.arange(6.0).view(2, 3).t() * (ranks.index + 1)
    ranks.add(transposed)
    copied = torch.tensor([-0.0, float(ranks.index)], dtype=torch.bfloat16)
    ranks.copy_first(copied)
    first = ranks.from_first(lambda: {"rank": ranks.index})
    return transposed, copied, first, ranks.total(2**40 + ranks.index), ranks.least(3, 9 - ranks.index)


def fail_alone(group, where):
    """Process 1 fails while the others exchange something."""
    ranks = Ranks(group)
    with ranks.together():
        if ranks.index == (0 if where == "first" else 1):
            raise KeyError("broken")
        if where == "first":
            ranks.from_first(lambda: 1)
        ranks.add(torch.zeros(3))
    return


def fail_within(group):
    """Process 1 fails in a block within another one, and names its error anew."""
    ranks = Ranks(group)
    with ranks.together():
        try:
            with Ranks(group).together():
                if ranks.index == 1:
                    raise KeyError("broken")
        except KeyError as error:
            raise ValueError(f"again: {error}") from error


def end_alone(group):
    if dist.get_rank(group) == 1:
        os._exit(1)
    Ranks(group).wait()
