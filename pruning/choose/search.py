"""Budgets by search: neurons move between layers as long as that brings the pruned model closer to the dense one.

`pruning.choose.sensitivity` measures each layer in a model that is otherwise dense. How much a layer matters depends on
what the others have lost, so here each measurement is of a whole candidate, with all layers pruned and repaired.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from pruning.choose.budget import allocate, uniform_width
from pruning.choose.candidates import cheap_repair
from pruning.choose.evidence import Evidence
from pruning.model.ffn import FFN
from pruning.model.snapshot import put_back, restored, take_snapshot
from pruning.observe.batches import Batch
from pruning.observe.divergence import DenseOutputs
from pruning.progress import progress_bar
from pruning.repair.separate import prune_separately
from pruning.settings import Settings

MAX_ROUNDS = 5
MIN_GAIN = 0.01
"""A round that lowers the divergence by a smaller share is the last one."""
PROBE = 1 / 16
"""The share of its neurons that a layer is probed with."""
LEAST = 0.02
"""No layer counts as less sensitive than this share of the median layer: none is free."""

Keep = Callable[[FFN, Evidence, int], Tensor]
"""Which neurons of a dense FFN to keep, given how many."""


class Searched(NamedTuple):
    """What a search found.

    Attributes:
        widths: neurons to keep in each layer.
        sensitivities: of the model to each layer, as it was measured last: the increase of the divergence that the
            damage curve predicts for halving it.
        divergences: of the model with uniform widths, and after each round that found better ones.
        n_candidates: how many models were pruned, repaired and compared.
    """

    widths: list[int]
    sensitivities: list[float]
    divergences: list[float]
    n_candidates: int


def search_widths(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    evidence: Sequence[Evidence],
    batches: Sequence[Batch],
    keep: Keep,
    settings: Settings,
    *,
    multiple_of: int,
    progress: bool = False,
) -> Searched:
    """Lower the divergence from the dense model (`pruning.observe.divergence`), beginning with uniform widths.

    In each round every layer in turn loses a few neurons more, which tells how sensitive the repaired model is to its
    damage. Then neurons move between the layers as the damage curves advise (`pruning.choose.budget.allocate`). Where
    that is no better, layers may change by half as much, and so on. A round costs a forward pass over `batches` for
    each layer. The model is unchanged afterwards.

    Args:
        batches: windows of tokens `[B, L]`.
        settings: the ratio, the cap and the repair, for which least squares stands in if it is sequential.

    Memory: the weights of all candidates' FFNs beside the dense ones.

    Raises:
        ValueError: the outputs of a candidate are not finite; or see `allocate`.
    """
    damage = [layer.damage.clone() for layer in evidence]  # without the rest of the evidence
    width = ffns[0].width
    widths = [uniform_width(width, settings.ratio, multiple_of)] * len(ffns)
    step = max(1, round(PROBE * width / multiple_of)) * multiple_of
    least = width - int(settings.max_layer_ratio * width)
    radius = width // multiple_of
    with restored(ffns), progress_bar("search", None, show=progress) as bar:
        candidate = _Candidate(model, ffns, evidence, batches, keep, settings)

        def measure(other: Sequence[int]) -> float:
            bar.update()
            return candidate.divergence(other)

        divergences = [measure(widths)]
        sensitivities = [1.0] * len(ffns)
        while len(divergences) <= MAX_ROUNDS:
            increases = []
            for i, (now, curve) in enumerate(zip(widths, damage, strict=True)):
                other = now - step if now - step >= least else min(now + step, width)
                probed = measure([*widths[:i], other, *widths[i + 1 :]]) - divergences[-1]
                added = float(curve[width - other] - curve[width - now])
                increases.append(probed / added * float(curve[width // 2]) if added else 0.0)
            floor = LEAST * median(increases)
            sensitivities = [max(increase, floor, 0.0) for increase in increases]
            better = None
            while radius and better is None:
                advised = allocate(
                    damage,
                    sensitivities,
                    width=width,
                    ratio=settings.ratio,
                    multiple_of=multiple_of,
                    max_layer_ratio=settings.max_layer_ratio,
                    around=widths,
                    radius=radius,
                )
                divergence = divergences[-1] if advised == widths else measure(advised)
                if divergence < divergences[-1]:
                    better = advised, divergence
                else:
                    radius //= 2
            if better is None:
                break
            widths, divergence = better
            divergences.append(divergence)
            if divergence > (1 - MIN_GAIN) * divergences[-2]:
                break
        return Searched(widths, sensitivities, divergences, candidate.count)


class _Candidate:
    """The model with its FFNs pruned to some widths and repaired.

    Attributes:
        count: how many have been compared with the dense model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ffns: Sequence[FFN],
        evidence: Sequence[Evidence],
        batches: Sequence[Batch],
        keep: Keep,
        settings: Settings,
    ) -> None:
        self.count = 0
        self._ffns, self._evidence, self._keep = ffns, evidence, keep
        self._repair = cheap_repair(settings.repair)
        self._dense = DenseOutputs(model, batches)
        self._dense_weights = [take_snapshot([ffn]) for ffn in ffns]
        self._widths = [ffn.width for ffn in ffns]

    def divergence(self, widths: Sequence[int]) -> float:
        """Of the model with these widths from the dense one.

        Raises:
            ValueError: it is not finite.
        """
        for i, (ffn, width) in enumerate(zip(self._ffns, widths, strict=True)):
            if width == self._widths[i]:
                continue
            put_back(self._dense_weights[i])
            layer = self._evidence[i]
            if width < ffn.width:
                prune_separately([ffn], [self._keep(ffn, layer, width)], [layer.statistics], self._repair)
            self._widths[i] = width
        self.count += 1
        divergence = self._dense.divergence()
        if not math.isfinite(divergence):
            raise ValueError(
                f"budget: expected finite outputs of the model with {list(widths)} neurons, got NaN or infinite ones; "
                "use budget='mi', which does not need them"
            )
        return divergence
