"""Which of several selections leaves the model closest to the dense one."""

from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from pruning.model.families import FFN
from pruning.model.surgery import prune_separately, restored
from pruning.observe.capture import Statistics
from pruning.observe.divergence import Dense
from pruning.repair.closed_form import Repair


def divergences(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    candidates: Iterable[Sequence[Tensor]],
    statistics: Sequence[Statistics],
    batches: Sequence[Tensor],
    repair: Repair,
) -> list[float]:
    """The divergence from the dense model (`pruning.observe.divergence`) of each candidate, pruned and repaired.

    Sequential repair would cost a pass through the model and a fit of every layer for each candidate: they are judged
    by the cheap repair, least squares, instead. The model is as it was afterwards.

    Args:
        candidates: of each, for each FFN the neurons that stay, ascending.
        batches: windows of tokens `[B, L]`.
        repair: of `pruning.settings.Settings`.

    Source: Huang, Song, Pao, Large Language Model Pruning, arXiv 2406.00030, of random seeds.
    """
    cheap: Repair = "lstsq" if repair == "sequential" else repair
    dense = Dense(model, batches)
    found = []
    for kept in candidates:
        with restored(ffns):
            prune_separately(ffns, kept, statistics, cheap)
            found.append(dense.divergence())
    return found
