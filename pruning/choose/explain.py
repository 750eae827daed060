"""Why the neurons of a layer were dropped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mikernels.ranks import ALONE, Ranks
from pruning.choose.evidence import Evidence
from pruning.choose.picture import Picture, take_picture
from pruning.choose.scores import magnitude, saliency_of
from pruning.model.ffn import FFN
from pruning.model.surgery import complement
from pruning.observe.capture import Statistics
from pruning.repair.ridge import LEAST_STRENGTH, ridge
from pruning.settings import Settings
from pruning.threshold import layer_null

NULL_LEVEL = 0.999
"""Share of the pairs of independent neurons that have less mutual information than `null_mi`."""
_PLAIN = dict.fromkeys(
    ("median_mi", "null_mi", "sensitivity", "repair_error", "refined_error"), torch.float64
)
_PLAIN |= {"n_tokens": torch.int64}
"""The fields of `PrunedLayer` that are numbers."""
_PICTURE = "picture."
"""Prefix of the fields of a picture."""


@dataclass(frozen=True)
class PrunedLayer:
    """The kept and the dropped neurons of one FFN, with the reasons.

    Attributes:
        name: of the block within the model.
        kept: `[kept]` indices of the kept neurons, ascending; their order in the pruned model.
        dropped: `[dropped]` indices of the dropped neurons, ascending. The fields below refer to them, in this order.
        partner: the kept neuron with which each shares most information.
        mi: that mutual information, nats.
        linear_r2: share of the variance that a linear map of all kept neurons predicts.
        saliency: the score that the criterion uses, or FLAP's fluctuation if it uses none.
        median_mi: over all pairs of a dropped and a kept neuron, nats.
        null_mi: what a pair of independent neurons exceeds with probability 0.001 at this sample size, nats.
        sensitivity: of the model to this layer, which determined its width; 1 under the uniform budget.
        n_tokens: that reached it. Below `pruning.observe.capture.MIN_TOKENS` nothing was measured: the saliency is the
            norm of the weights, the partner -1, MI and R^2 0, and the null NaN.
        repair_error: of the repaired FFN: the squared error of its output on the calibration, relative to the square of
            the output that it should have (`pruning.repair`), before refining; NaN if nothing was measured.
        refined_error: the squared error on held-back tokens after refining, relative to that before; 1 if refining was
            no better and was undone, NaN without refining.
        picture: a closer look, if one was taken.
    """

    name: str
    kept: Tensor
    dropped: Tensor
    partner: Tensor
    mi: Tensor
    linear_r2: Tensor
    saliency: Tensor
    median_mi: float
    null_mi: float
    sensitivity: float
    n_tokens: int
    repair_error: float = math.nan
    refined_error: float = math.nan
    picture: Picture | None = None

    @property
    def is_measured(self) -> bool:
        """Whether enough tokens reached it."""
        return not math.isnan(self.null_mi)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the name, by field."""
        picture = {} if self.picture is None else self.picture.tensors()
        return {
            field.name: torch.as_tensor(getattr(self, field.name), dtype=_PLAIN.get(field.name))
            for field in fields(self)
            if field.name not in ("name", "picture")
        } | {f"{_PICTURE}{name}": tensor for name, tensor in picture.items()}

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor]) -> "PrunedLayer":
        """The inverse of `tensors`."""
        values: dict[str, Any] = {n: t.item() if n in _PLAIN else t for n, t in tensors.items()}
        picture = {n.removeprefix(_PICTURE): values.pop(n) for n in tensors if n.startswith(_PICTURE)}
        return cls(name, **values, picture=Picture(**picture) if picture else None)

    def as_json(self) -> dict[str, Any]:
        """The entry of the manifest."""
        columns = {
            "neuron": self.dropped.tolist(),
            "partner": self.partner.tolist(),
            "mi_nats": _rounded(self.mi),
            "linear_r2": _rounded(self.linear_r2),
            "saliency": _rounded(self.saliency),
        }
        return {
            "name": self.name,
            "median_mi_nats": round(self.median_mi, 6),
            "null_mi_nats": round(self.null_mi, 6),
            "sensitivity": float(f"{self.sensitivity:.6g}"),
            "tokens": self.n_tokens,
            "repair_error": float(f"{self.repair_error:.6g}"),
            "refined_error": None if math.isnan(self.refined_error) else float(f"{self.refined_error:.6g}"),
            "kept": self.kept.tolist(),
            "dropped": columns,
        }


def explain(
    ffn: FFN,
    evidence: Evidence,
    kept: Tensor,
    sensitivity: float,
    settings: Settings,
    ranks: Ranks = ALONE,
    *,
    picture: bool = False,
) -> PrunedLayer:
    """Describe the selection of the neurons `kept` in one layer, with or without a `picture`; `ranks` share out its
    mutual information."""
    statistics = evidence.statistics
    if not statistics.is_enough:
        return unexplained(ffn, evidence, kept, sensitivity)
    dropped = complement(kept, ffn.width)
    mi = evidence.mi_between(dropped, kept, settings, ranks)
    best = mi.max(1)
    null = layer_null(NULL_LEVEL, statistics.sample, estimator=settings.estimator, nodes=settings.nodes)
    reasons = {"dropped": dropped, "partner": kept[best.indices], "mi": best.values}
    return PrunedLayer(
        name=ffn.name,
        kept=kept,
        dropped=dropped,
        partner=reasons["partner"],
        mi=reasons["mi"],
        linear_r2=explained_variance(statistics, kept, dropped),
        saliency=saliency_of(ffn, statistics, settings.criterion)[dropped],
        median_mi=float(mi.median()),
        null_mi=null.quantile(NULL_LEVEL),
        sensitivity=sensitivity,
        n_tokens=statistics.n_tokens,
        picture=take_picture(evidence, reasons, null, settings, ranks) if picture else None,
    )


def unexplained(ffn: FFN, evidence: Evidence, kept: Tensor, sensitivity: float) -> PrunedLayer:
    """The selection of the neurons `kept` in one layer, without measured reasons."""
    dropped = complement(kept, ffn.width)
    zeros = torch.zeros(len(dropped), device=dropped.device)
    return PrunedLayer(
        name=ffn.name,
        kept=kept,
        dropped=dropped,
        partner=torch.full_like(dropped, -1),
        mi=zeros,
        linear_r2=zeros.clone(),  # a file of a run from disk holds no tensor twice
        saliency=magnitude(ffn)[dropped],
        median_mi=0.0,
        null_mi=math.nan,
        sensitivity=sensitivity,
        n_tokens=evidence.statistics.n_tokens,
    )


def explained_variance(statistics: Statistics, keep: Tensor, drop: Tensor) -> Tensor:
    """Linear R^2 of each dropped neuron given the kept ones, `[dropped]` in [0, 1].

    Measured on the calibration tokens and adjusted for the number of kept neurons: independent neurons have about 0,
    even with few tokens.
    """
    covariance = statistics.covariance
    across = covariance[keep][:, drop]
    b = ridge(covariance[keep][:, keep], across, LEAST_STRENGTH).t()
    cross = (b * across.t()).sum(1)
    # The prediction has the variance b C b, and (C + penalty) b is `across`.
    variance = covariance.diagonal().double()
    fit = cross - LEAST_STRENGTH * (b.square() * variance[keep]).sum(1)
    unexplained = 1 - (2 * cross - fit) / variance[drop].clamp_min(1e-300)
    spare = max(statistics.n_tokens - len(keep) - 1, 1)
    return (1 - unexplained * (statistics.n_tokens - 1) / spare).clamp(0.0, 1.0)


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
