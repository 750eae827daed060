"""Budgets by search: neurons move between layers as long as that brings the pruned model closer to the dense one.

`pruning.choose.sensitivity` measures each layer in a model that is otherwise dense. How much a layer matters depends on
what the others have lost, so here each measurement is of a whole candidate, with all layers pruned and repaired.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from pruning.choose.budget import allocate
from pruning.choose.candidates import cheap_repair
from pruning.choose.evidence import Evidence
from pruning.model.ffn import FFN
from pruning.model.snapshot import put_back, restored, take_snapshot
from pruning.observe.batches import Batch
from pruning.observe.divergence import DenseOutputs
from pruning.progress import progress_bar
from pruning.repair.separate import prune_separately
from pruning.settings import Settings

ROUNDS = 4
MOVES = 4
"""How many moves are tried in a round, at most."""
REACH = 1 / 8
"""The share of its neurons that a layer gains or loses at most in the first move."""
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
        sensitivities: of the model to each layer: the increase of the divergence that its damage curve predicts for
            halving it, mean over the rounds.
        divergences: of the model with the first widths, and after each round.
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
    widths: Sequence[int],
    judged: Sequence[Batch],
    probed: Sequence[Sequence[Batch]],
    keep: Keep,
    settings: Settings,
    *,
    multiple_of: int,
    progress: bool = False,
) -> Searched:
    """Lower the divergence from the dense model (`pruning.observe.divergence`), beginning with `widths`.

    In each round every layer in turn loses a few neurons more, which tells how sensitive the repaired model is to its
    damage. Then neurons move between the layers as the damage curves advise (`pruning.choose.budget.allocate`). Where
    that is no better, layers may change by half as much, and so on. Layers are probed on other tokens in each round,
    and moves are judged on tokens that no layer is probed on: a search on the same few would fit their noise. The model
    is unchanged afterwards.

    Args:
        judged: windows of tokens `[B, L]` that decide.
        probed: for each round in turn, windows that sensitivities are measured on: a forward pass for each layer.
        settings: the ratio, the cap and the repair, for which least squares stands in if it is sequential.

    Memory: the weights of all candidates' FFNs beside the dense ones, and the logits of all windows on the CPU.

    Raises:
        ValueError: the outputs of a candidate are not finite; or see `allocate`.
    """
    damage = [layer.damage.clone() for layer in evidence]  # without the rest of the evidence
    width, widths = ffns[0].width, list(widths)
    step = max(1, round(PROBE * width / multiple_of)) * multiple_of
    least = width - int(settings.max_layer_ratio * width)
    radius = max(1, round(REACH * width / multiple_of))
    advise = partial(
        allocate,
        damage,
        width=width,
        ratio=settings.ratio,
        multiple_of=multiple_of,
        max_layer_ratio=settings.max_layer_ratio,
    )
    judges, *probes = (DenseOutputs(model, batches) for batches in (judged, *probed))
    with restored(ffns), progress_bar("search", None, show=progress) as bar:
        candidate = _Candidate(ffns, evidence, keep, settings)

        def measure(outputs: DenseOutputs, other: Sequence[int]) -> float:
            bar.update()
            return candidate.divergence(outputs, other)

        divergences, increases, sensitivities = (
            [measure(judges, widths)],
            [0.0] * len(ffns),
            [0.0] * len(ffns),
        )
        for turn in range(ROUNDS):
            outputs = probes[turn % len(probes)]
            before = measure(outputs, widths)
            for i, (now, curve) in enumerate(zip(widths, damage, strict=True)):
                other = now - step if now - step >= least else min(now + step, width)
                increase = measure(outputs, [*widths[:i], other, *widths[i + 1 :]]) - before
                added = float(curve[width - other] - curve[width - now])
                increases[i] += increase / added * float(curve[width // 2]) if added else 0.0
            floor = max(LEAST * median(increases), 0.0)
            sensitivities = [max(increase, floor) / (turn + 1) for increase in increases]
            for _ in range(MOVES):
                advised = advise(sensitivities, around=widths, radius=radius)
                if (divergence := measure(judges, advised)) < divergences[-1]:
                    widths = advised
                    break
                radius = max(radius // 2, 1)
            divergences.append(min(divergence, divergences[-1]))
        return Searched(widths, sensitivities, divergences, candidate.count)


class _Candidate:
    """The model with its FFNs pruned to some widths and repaired.

    Attributes:
        count: how many have been compared with the dense model.
    """

    def __init__(
        self,
        ffns: Sequence[FFN],
        evidence: Sequence[Evidence],
        keep: Keep,
        settings: Settings,
    ) -> None:
        self.count = 0
        self._ffns, self._evidence, self._keep = ffns, evidence, keep
        self._repair = cheap_repair(settings.repair)
        self._dense_weights = [take_snapshot([ffn]) for ffn in ffns]
        self._widths = [ffn.width for ffn in ffns]

    def divergence(self, dense: DenseOutputs, widths: Sequence[int]) -> float:
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
        divergence = dense.divergence()
        if not math.isfinite(divergence):
            raise ValueError(
                f"budget: expected finite outputs of the model with {list(widths)} neurons, got NaN or infinite ones; "
                "use budget='mi', which does not need them"
            )
        return divergence
