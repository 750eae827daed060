"""What one layer costs: operations by the rate that they run at, and memory."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from pruning.observe.moments import BLOCK
from pruning.planning.rates import Rates
from pruning.repair.refine import BATCH, HELD_BACK, PASSES
from pruning.settings import Settings


class Work(NamedTuple):
    """Counts of what `Rates` has rates of; FLOP but for bytes of `stream`, `read` and `write`, steps and pairs."""

    product: float = 0
    product32: float = 0
    product64: float = 0
    factor32: float = 0
    factor64: float = 0
    stream: float = 0
    step: float = 0
    pair: float = 0
    read: float = 0
    write: float = 0

    def __add__(self, other: object) -> "Work":
        assert isinstance(other, Work)  # noqa: S101, a tuple would be appended
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def seconds(self, rates: Rates) -> float:
        """How long it takes, one after the other."""
        total = 0.0
        for name, count in self._asdict().items():
            rate = getattr(rates, name)
            total += count * rate if name in ("step", "pair") else count / rate
        return total


@dataclass(frozen=True)
class FFNShape:
    """One FFN, or all experts of a stack together.

    Attributes:
        width, kept: neurons before and after.
        outputs: of its output projection.
        count: how many of them: experts of a stack, otherwise 1.
        share: of the tokens that reach each.
        weights: values in the parameters of all of them.
    """

    width: int
    kept: int
    outputs: int
    count: int
    share: float
    weights: int


@dataclass(frozen=True)
class LayerShape:
    """One layer.

    Attributes:
        ffns: those to prune.
        weights: values in all parameters.
        active: of those, how many a token meets.
        hidden: size of the hidden states.
        bytes_before, bytes_after: in the files.
    """

    ffns: tuple[FFNShape, ...]
    weights: int
    active: float
    hidden: int
    bytes_before: int
    bytes_after: int


def symmetric(width: int) -> float:
    """The share of the products of a symmetric matrix that `pruning.observe.moments` computes."""
    blocks = range(0, width, BLOCK)
    return sum(min(BLOCK, width - start) * min(start + BLOCK, width) for start in blocks) / width**2


def forward(layer: LayerShape, n_tokens: int, length: int) -> Work:
    """One stream through a layer."""
    return Work(product=2 * n_tokens * layer.active + 2 * n_tokens * length * layer.hidden)


def moments(ffn: FFNShape, n_tokens: int) -> Work:
    """The products of its neurons with each other."""
    return Work(product32=2 * ffn.count * ffn.share * n_tokens * ffn.width**2 * symmetric(ffn.width))


def examples(ffn: FFNShape, n_tokens: int) -> Work:
    """Those in the pruned stream, and those with the targets."""
    targets = Work(product32=2 * ffn.count * ffn.share * n_tokens * ffn.width * ffn.outputs)
    return moments(ffn, n_tokens) + targets


def eliminate(ffn: FFNShape, n_drop: int, *, on_cpu: bool) -> Work:
    """Backward elimination of `n_drop` neurons (`pruning.choose.elimination`)."""
    n, d, k = ffn.width, ffn.outputs, ffn.count
    if n_drop == 0:
        return Work()
    block = 32 * n * 4  # of a matrix of at most 64 rows, on average
    if on_cpu:
        update = 2 * n_drop * (n**2 + d * n)
        read = 4 * d * n + 3 * block
    else:
        update, read = 6 * n_drop * n**2 + 2 * d * n**2, 4 * block
    return Work(
        factor32=k * n**3,
        product32=k * (2 * d * n**2 + update),
        stream=k * n_drop * read,
        step=k * n_drop,
    )


def explain(ffn: FFNShape) -> Work:
    """Why each neuron was dropped: its partner, and how well the kept ones predict it."""
    kept, dropped = ffn.kept, ffn.width - ffn.kept
    return Work(
        factor64=ffn.count * kept**3 / 3,
        product64=ffn.count * 2 * kept**2 * dropped,
        pair=ffn.count * kept * dropped,
    )


def refine(ffn: FFNShape, n_tokens: int) -> Work:
    """The steps, with gradients of all weights and of the neurons, and the error on held-back tokens twice."""
    weights, output = ffn.weights * ffn.kept / ffn.width, ffn.outputs * ffn.kept
    held = HELD_BACK * n_tokens
    learned = math.ceil(PASSES * n_tokens / BATCH) * min(BATCH, n_tokens - held)
    return Work(product=learned * (4 * weights + 2 * output) + 2 * held * 2 * weights)


def repair(ffn: FFNShape, settings: Settings) -> Work:
    """The closed form."""
    kept, dropped, d, k = ffn.kept, ffn.width - ffn.kept, ffn.outputs, ffn.count
    error = 4 * ffn.width**2 * d if settings.repair != "sequential" else 0  # of the output, for the report
    if settings.repair in ("none", "bias"):
        return Work(product32=k * error)
    twice = Work(factor64=k * 2 * kept**3 / 3, product64=k * 4 * kept**2 * d)  # the strength, and with it
    if settings.repair == "sequential":
        return twice + Work(product32=k * 2 * 2 * kept**2 * d)
    return twice + Work(product64=k * 2 * dropped * d * (kept + dropped), product32=k * error)


def again(layer: LayerShape, n_tokens: int) -> Work:
    """The pruned FFNs once more, to move on behind them."""
    active = sum(ffn.share * ffn.weights * ffn.kept / ffn.width for ffn in layer.ffns)
    return Work(product=2 * n_tokens * active)
