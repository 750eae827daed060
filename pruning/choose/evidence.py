"""Everything that a selection is based on, for each FFN."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mikernels
from pruning.choose.budget import kept_width
from pruning.choose.elimination import conditional_mi
from pruning.choose.scores import ascending, magnitude
from pruning.model.ffn import FFN
from pruning.observe.batches import Batch
from pruning.observe.capture import Statistics, capture
from pruning.progress import timed, track
from pruning.settings import Settings


@dataclass(frozen=True)
class Evidence:
    """What was measured of one FFN.

    Attributes:
        statistics: of its activations.
        all_pairs: mutual information `[N, N]` float32, nats, 0 on the diagonal; None where the selection does not
            depend on it.
        order: `[n]`, see `pruning.choose.elimination.conditional_mi`; as long as needed (`order_length`), or N.
        damage: `[n + 1]`, see there.
        divergence: of the model with half of this FFN (`pruning.choose.sensitivity.with_divergence`), if measured.
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

    def mi_between(self, rows: Tensor, columns: Tensor, settings: Settings) -> Tensor:
        """Mutual information `[rows, columns]` of the neurons `rows` with the neurons `columns`, nats.

        Raises:
            ValueError: see `mikernels.mutual_information`; the message names the FFN.
        """
        if self.all_pairs is not None:
            return self.all_pairs[rows][:, columns]
        sample = self.statistics.sample
        return _measure_mi(self.statistics, settings, sample[:, rows], sample[:, columns])


def gather_evidence(
    model: PreTrainedModel,
    ffns: list[FFN],
    batches: Sequence[Batch],
    settings: Settings,
    *,
    any_ratio: bool = True,
    seconds: dict[str, float] | None = None,
    progress: bool = False,
) -> list[Evidence]:
    """Capture the activations of every FFN in one run of the model, then measure the FFNs one by one.

    Args:
        batches: windows of tokens `[B, L]`.
        settings: `sample_size`, `estimator`, `nodes` and `seed` are used.
        any_ratio: see `measure_ffn`.
        seconds: gets the time of the stages "capture" and "measure".

    Raises:
        ValueError: see `pruning.observe.capture.capture` and `measure_ffn`.
    """
    seconds = {} if seconds is None else seconds
    with timed(seconds, "capture"):
        shown = track(batches, "capture", show=progress)
        statistics = capture(model, ffns, shown, sample_size=settings.sample_size, seed=settings.seed)
    with timed(seconds, "measure"):
        pairs = track(list(zip(ffns, statistics, strict=True)), "measure", show=progress)
        return [measure_ffn(ffn, activations, settings, any_ratio=any_ratio) for ffn, activations in pairs]


def order_length(ffn: FFN, settings: Settings) -> int:
    """How many neurons the conditional-MI order has to rank for these settings."""
    if (
        settings.budget != "uniform"
    ):  # the damage of halving a layer, and of dropping as much as the cap allows
        return max(ffn.width // 2, int(settings.max_layer_ratio * ffn.width))
    if settings.criterion != "conditional-mi":
        return 0
    return ffn.width - kept_width(ffn, settings.ratio, settings.multiple_of)


def measure_ffn(ffn: FFN, statistics: Statistics, settings: Settings, *, any_ratio: bool) -> Evidence:
    """Measure the mutual information of pairs of neurons, and the damage to the output of dropping them.

    An expert that too few tokens reach is ranked by the norms of its weights; its MI and damage are 0.

    Args:
        any_ratio: measure all pairs and order all neurons, instead of only what these settings need.

    Raises:
        ValueError: see `mikernels.mutual_information`; the message names the FFN.
    """
    if not statistics.is_enough:
        size = ffn.width
        zeros = torch.zeros(size, size, device=ffn.output.weight.device)
        damage = torch.zeros(size + 1, dtype=torch.float64, device=zeros.device)
        return Evidence(statistics, zeros, ascending(magnitude(ffn)), damage)
    mi = None
    if any_ratio or settings.criterion in ("pairwise-mi", "random-pairs") or settings.budget == "mi":
        mi = _measure_mi(statistics, settings, statistics.sample).fill_diagonal_(0.0)
    length = ffn.width if any_ratio else order_length(ffn, settings)
    order, damage = conditional_mi(statistics.covariance, ffn.output.weight, length)
    return Evidence(statistics, mi, order, damage)


def _measure_mi(statistics: Statistics, settings: Settings, x: Tensor, y: Tensor | None = None) -> Tensor:
    try:
        return mikernels.mutual_information(
            x, y, estimator=settings.estimator, nodes=settings.nodes, seed=settings.seed
        )
    except ValueError as error:
        raise ValueError(f"{statistics.name}: {error}") from error
