"""Everything that a selection is based on, for each FFN."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mikernels
from mikernels.ranks import ALONE, Ranks
from pruning.choose.budget import kept_width
from pruning.choose.elimination import Elimination, conditional_mi
from pruning.choose.scores import ascending, magnitude
from pruning.model.ffn import FFN
from pruning.model.layers import IN_MEMORY, Layers, by_layer
from pruning.observe.batches import Batch
from pruning.observe.capture import Statistics, capture
from pruning.progress import progress_bar, timed
from pruning.repair.sequential import visit_layers
from pruning.settings import Settings

GROUP_BYTES = 2**31
"""Of moments that are captured at a time in models whose layers cannot be run one by one."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of one FFN.

    Attributes:
        statistics: of its activations.
        all_pairs: mutual information `[N, N]` float32, nats, 0 on the diagonal; None where the selection does not
            depend on it.
        order: `[n]`, see `pruning.choose.elimination.conditional_mi`; as long as needed (`order_length`), or N.
        damage: `[n + 1]`, see there.
        divergence: of the model with half of this FFN (`pruning.choose.sensitivity.halved_divergences`), if measured.
    """

    statistics: Statistics
    all_pairs: Tensor | None
    order: Tensor
    damage: Tensor
    divergence: float | None = None

    @property
    def mi(self) -> Tensor:
        """`all_pairs` where it was measured."""
        if self.all_pairs is None:
            raise ValueError(f"{self.statistics.name}: expected evidence of all pairs, got none")
        return self.all_pairs

    @cached_property
    def median_mi(self) -> float:
        """Over all pairs, nats."""
        return float(self.mi[torch.ones_like(self.mi, dtype=torch.bool).triu_(1)].median())

    def mi_between(self, rows: Tensor, columns: Tensor, settings: Settings, ranks: Ranks = ALONE) -> Tensor:
        """Mutual information `[rows, columns]` of the neurons `rows` with the neurons `columns`, nats.

        Args:
            ranks: processes that have the same evidence and share out the work.

        Raises:
            ValueError: see `mikernels.mutual_information`; the message names the FFN.
        """
        if self.all_pairs is not None:
            return self.all_pairs[rows][:, columns]
        sample = self.statistics.sample
        if len(rows) == 0:  # a budget may spare a layer
            return sample.new_zeros(0, len(columns))
        return _measure_mi(self.statistics, settings, ranks, sample[:, rows], sample[:, columns])


def gather_evidence(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Batch],
    settings: Settings,
    source: Layers = IN_MEMORY,
    *,
    follow: bool = False,
    any_ratio: bool = True,
    ranks: Ranks = ALONE,
    seconds: dict[str, float] | None = None,
    progress: bool = False,
) -> Iterator[Evidence]:
    """Capture the activations of the FFNs, a layer or a group of layers at a time, and measure them one by one.

    Args:
        batches: windows of tokens `[B, L]`.
        settings: `sample_size`, `estimator`, `nodes` and `seed` are used.
        follow: whether the layers of the model can be run one by one; of other models, as many FFNs are captured in one
            run as have moments of `GROUP_BYTES`.
        any_ratio: see `measure_ffn`.
        ranks: processes that have batches of their own; all get the evidence of all batches.
        seconds: gets the time of the stages "capture" and "measure".

    Raises:
        ValueError: see `pruning.observe.capture.capture` and `measure_ffn`.
    """
    seconds = {} if seconds is None else seconds
    sampling: Any = {"sample_size": settings.sample_size, "seed": settings.seed, "ranks": ranks}
    captured: Iterator[tuple[list[FFN], list[Statistics]]]
    if follow:
        sampling["memory_budget"] = settings.memory_budget
        visits = visit_layers(model, ffns, batches, source, **sampling, fit=False, write=False)
        captured = ((visit.ffns, visit.statistics) for visit in visits)
        total = len(by_layer(ffns))
    else:
        groups = _groups(ffns)
        captured = ((group, capture(model, group, batches, **sampling, among=ffns)) for group in groups)
        total = len(groups)
    with progress_bar("capture", total, show=progress) as bar:
        while True:
            with timed(seconds, "capture"):
                found, statistics = next(captured, ([], []))
            if not found:
                return
            for ffn in found:
                with timed(seconds, "measure"):
                    layer = statistics.pop(0)
                    (order,) = order_neurons([ffn], [layer], settings, any_ratio=any_ratio, ranks=ranks)
                    evidence = measure_ffn(ffn, layer, order, settings, any_ratio=any_ratio, ranks=ranks)
                    del layer, order
                yield evidence
                del evidence
            bar.update()


def _groups(ffns: Sequence[FFN]) -> list[list[FFN]]:
    """The FFNs in their order, in groups whose moments take at most `GROUP_BYTES`; at least one in each."""
    groups: list[list[FFN]] = []
    free = 0
    for ffn in ffns:
        needed = 4 * ffn.width**2
        if needed > free:
            groups.append([])
            free = max(GROUP_BYTES, needed)
        groups[-1].append(ffn)
        free -= needed
    return groups


def order_length(ffn: FFN, settings: Settings) -> int:
    """How many neurons the conditional-MI order has to rank for these settings."""
    if settings.budget != "uniform":  # as much as the cap allows, and half of a layer
        return max(ffn.width // 2, int(settings.max_layer_ratio * ffn.width))
    if settings.criterion != "conditional-mi":
        return 0
    return ffn.width - kept_width(ffn, settings.ratio, settings)


def order_neurons(
    ffns: Sequence[FFN],
    statistics: Sequence[Statistics],
    settings: Settings,
    *,
    any_ratio: bool,
    ranks: Ranks = ALONE,
) -> list[Elimination]:
    """The order in which to drop the neurons of each FFN, and the damage to its output.

    An expert that too few tokens reach is ordered by the norms of its weights, and its damage is 0.

    Args:
        any_ratio: order all neurons, instead of only as many as these settings need.
        ranks: processes that have the same statistics; each FFN is left to one of them.
    """

    def order(ffn: FFN, layer: Statistics) -> Elimination:
        if not layer.is_enough:
            damage = torch.zeros(ffn.width + 1, dtype=torch.float64, device=ffn.output.weight.device)
            return Elimination(ascending(magnitude(ffn)), damage)
        length = ffn.width if any_ratio else order_length(ffn, settings)
        return conditional_mi(layer.covariance, ffn.output.weight, length)

    makes = [partial(order, ffn, layer) for ffn, layer in zip(ffns, statistics, strict=True)]
    return [Elimination(*found) for found in ranks.each_once(makes, ffns[0].output.weight.device)]


def measure_ffn(
    ffn: FFN,
    statistics: Statistics,
    elimination: Elimination,
    settings: Settings,
    *,
    any_ratio: bool,
    ranks: Ranks = ALONE,
) -> Evidence:
    """The evidence of an FFN; measures the mutual information of its neurons if the selection depends on it.

    That of an expert that too few tokens reach is 0.

    Args:
        elimination: see `order_neurons`.
        any_ratio: measure all pairs in any case.
        ranks: processes that have the same statistics and share out the pairs.

    Raises:
        ValueError: see `mikernels.mutual_information`; the message names the FFN.
    """
    if not statistics.is_enough:
        zeros = torch.zeros(ffn.width, ffn.width, device=ffn.output.weight.device)
        return Evidence(statistics, zeros, *elimination)
    mi = None
    if any_ratio or settings.criterion in ("pairwise-mi", "random-pairs") or settings.budget == "mi":
        mi = _measure_mi(statistics, settings, ranks, statistics.sample).fill_diagonal_(0.0)
    return Evidence(statistics, mi, *elimination)


def _measure_mi(
    statistics: Statistics, settings: Settings, ranks: Ranks, x: Tensor, y: Tensor | None = None
) -> Tensor:
    try:
        return mikernels.mutual_information(
            x,
            y,
            estimator=settings.estimator,
            nodes=settings.nodes,
            seed=settings.seed,
            process_group=ranks.group,
        )
    except ValueError as error:
        raise ValueError(f"{statistics.name}: {error}") from error
