"""A closer look at one layer, small enough to keep of every layer: what the report shows of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mikernels import Null
from mikernels.ranks import ALONE, Ranks
from pruning.choose.evidence import Evidence
from pruning.observe.capture import Statistics
from pruning.settings import Settings

SHOWN = 96
"""Neurons of the map."""
REDUNDANT = 10
"""Dropped neurons that are described one by one."""
EXAMPLES = 3
"""Tokens that excite each of them most."""
POINTS = 65
"""Of the curve of the damage."""
MOST = 64
"""Layers of a model to keep a picture of; of more, as of hundreds of experts, evenly spread ones."""


@dataclass(frozen=True)
class Picture:
    """What is kept of the measurements of one FFN.

    Attributes:
        shown: `[m]` int64, the neurons of the map: all of them, or the most redundant ones, their partners, and others
            at even distances. Neurons that share information are neighbors.
        mi: `[m, m]` float32, the mutual information of these, nats, 0 on the diagonal.
        steps: `[p]` int64, numbers of neurons that are dropped in the order of conditional MI, from 0 to as many as
            were ordered; empty if the run needed no such order.
        damage: `[p]` float64, see `pruning.choose.elimination.Elimination`.
        redundant: `[r]` int64, the dropped neurons that share most with a kept one, that with most first.
        p_value: `[r]` float64, the probability that independent neurons reach the MI of each with its partner.
        tokens: `[r, e]` int64, among all tokens of the calibration, those of the sample at which each neuron is
            farthest from 0, the farthest first; -1 where that is unknown (`Statistics.tokens`).
        activation: `[r, e]` float32, there.
    """

    shown: Tensor
    mi: Tensor
    steps: Tensor
    damage: Tensor
    redundant: Tensor
    p_value: Tensor
    tokens: Tensor
    activation: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name, for `Picture(**tensors)`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def take_picture(
    evidence: Evidence,
    reasons: Mapping[str, Tensor],
    null: Null,
    settings: Settings,
    ranks: Ranks = ALONE,
) -> Picture:
    """The picture of a layer, on the CPU; one block of `SHOWN` x `SHOWN` pairs is measured for it.

    Args:
        reasons: the dropped neurons `dropped`, and of each its `partner` and their `mi`, all `[dropped]`.
        null: of the estimates.
        ranks: processes that have the same evidence and share out the pairs.
    """
    statistics = evidence.statistics
    most = reasons["mi"].argsort(descending=True, stable=True)[:REDUNDANT]
    redundant = reasons["dropped"][most]
    shown = _to_show(len(statistics.mean), torch.cat([redundant, reasons["partner"][most]]))
    mi = evidence.mi_between(shown, shown, settings, ranks).cpu().clone()
    mi.fill_diagonal_(0.0)
    order = by_similarity(mi)
    length = len(evidence.damage) - 1
    steps = (
        torch.linspace(0, length, min(POINTS, length + 1)).round().long() if length else torch.empty(0).long()
    )
    tokens, activation = exciting_tokens(statistics, redundant)
    return Picture(
        shown=shown.cpu()[order],
        mi=mi[order][:, order],
        steps=steps,
        damage=evidence.damage.cpu()[steps],
        redundant=redundant.cpu(),
        p_value=null.p_value(reasons["mi"][most]).cpu(),
        tokens=tokens.cpu(),
        activation=activation.cpu(),
    )


def by_similarity(mi: Tensor) -> Tensor:
    """An order `[m]` that puts rows of a symmetric matrix `[m, m]` with large entries between them side by side.

    Source: the second eigenvector of the normalized matrix; Atkins, Boman, Hendrickson, A spectral algorithm for
    seriation and the consecutive ones problem, SIAM J. Comput. 28 (1998), DOI 10.1137/S0097539795285771; normalized as
    in Shi, Malik, Normalized cuts and image segmentation, PAMI 22 (2000), DOI 10.1109/34.868688.
    """
    similarity = mi.double().clamp_min(0)
    scale = similarity.sum(1).clamp_min(1e-12).rsqrt()
    _, vectors = torch.linalg.eigh(scale[:, None] * similarity * scale)
    place = vectors[:, -min(2, len(mi))] * scale
    if place[place.abs().argmax()] < 0:  # an eigenvector has no sign of its own
        place = -place
    return place.argsort(stable=True)


def exciting_tokens(statistics: Statistics, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of the sample at which each of the `neurons` `[r]` is farthest from 0, and its values there, both
    `[r, e]`.

    The size counts, not the sign, because that of a gated neuron is arbitrary.
    """
    values = statistics.sample[:, neurons].float().t()  # [r, M]
    top = values.abs().topk(min(EXAMPLES, values.shape[1])).indices
    known = statistics.tokens
    tokens = torch.full_like(top, -1) if known is None else known.to(top.device)[top]
    return tokens, values.gather(1, top)


def _to_show(width: int, first: Tensor) -> Tensor:
    """The neurons of the map, ascending: those of `first`, and others at even distances."""
    if width <= SHOWN:
        return torch.arange(width, device=first.device)
    chosen = torch.zeros(width, dtype=torch.bool, device=first.device)
    chosen[first] = True
    others = (~chosen).nonzero().flatten()
    count = SHOWN - int(chosen.sum())
    chosen[others[torch.arange(count, device=first.device) * len(others) // count]] = True
    return chosen.nonzero().flatten()
