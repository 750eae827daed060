"""Compare candidate selections by how close their pruned models stay to the dense model."""

from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from pruning.choose.evidence import Evidence
from pruning.model.ffn import FFN
from pruning.model.snapshot import restored
from pruning.observe.batches import Batch
from pruning.observe.divergence import DenseOutputs
from pruning.repair.separate import prune_separately
from pruning.settings import Repair


def divergences(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    candidates: Iterable[Sequence[Tensor]],
    evidence: Sequence[Evidence],
    batches: Sequence[Batch],
    repair: Repair,
) -> list[float]:
    """Prune and repair each candidate, and measure its divergence from the dense model (`pruning.observe.divergence`).

    Sequential repair would cost a pass through the model and a fit of every layer per candidate; least squares stands
    in for it. The model is unchanged afterwards.

    Args:
        candidates: each one holds for each FFN the neurons to keep, ascending.
        batches: windows of tokens `[B, L]`.
        repair: see `pruning.settings.Settings`.

    Source: Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030, for random seeds.
    """
    cheap_repair: Repair = "lstsq" if repair == "sequential" else repair
    dense = DenseOutputs(model, batches)
    result = []
    for kept in candidates:
        with restored(ffns):
            prune_separately(ffns, kept, (layer.statistics for layer in evidence), cheap_repair)
            result.append(dense.divergence())
    return result
