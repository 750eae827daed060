"""The speed of the pruned model relative to the dense one.

Both are timed in turn (dense, pruned, dense, pruned, ...) in one process on the same windows, by swapping the weights
of the FFNs. The load of the machine then changes little within a pair, and the ratios of the pairs show the spread.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mikernels.isolation import isolated
from pruning.model.evaluation_mode import evaluation_mode
from pruning.model.ffn import FFN
from pruning.model.forward import comparable_part, without_cache
from pruning.model.snapshot import Snapshot, put_back, take_snapshot
from pruning.observe.mixture import text_inputs

PAIRS = 7
TOKENS = 1024
"""Per forward pass, so that all passes together read about as much text as two evaluations on 8,192 tokens."""


class PairedSpeed(NamedTuple):
    """Tokens per second of forward passes.

    Attributes:
        dense, pruned: median over the pairs.
        ratio: median over the pairs of pruned / dense.
        quartiles: of these ratios.
        pairs: number of pairs.
    """

    dense: float
    pruned: float
    ratio: float
    quartiles: tuple[float, float]
    pairs: int


@isolated()
def paired_speed(
    model: PreTrainedModel, ffns: Sequence[FFN], dense: Snapshot, windows: Tensor
) -> PairedSpeed:
    """Time the pruned model against its dense version; the model is unchanged afterwards.

    Args:
        model: the pruned model, with the FFNs `ffns`.
        dense: the weights of the FFNs before pruning (`pruning.model.snapshot`).
        windows: `[n, L]` tokens; about 1,024 tokens of them are used.
    """
    pruned = take_snapshot(ffns)
    ids = windows[: max(1, TOKENS // windows.shape[1])].to(model.device)
    inputs = text_inputs(model, ids)
    seconds = torch.empty(PAIRS, 2, dtype=torch.float64)
    try:
        with torch.inference_mode(), evaluation_mode(model):
            for pair in range(-1, PAIRS):  # the first pair is the warm-up; the next one overwrites it
                for column, weights in enumerate((dense, pruned)):
                    put_back(weights)
                    seconds[max(pair, 0), column] = _forward_seconds(model, inputs)
    finally:
        put_back(pruned)
    ratios = seconds[:, 0] / seconds[:, 1]
    low, median, high = ratios.quantile(ratios.new_tensor([0.25, 0.5, 0.75])).tolist()
    dense_speed, pruned_speed = (ids.numel() / seconds.median(0).values).tolist()
    return PairedSpeed(dense_speed, pruned_speed, median, (low, high), PAIRS)


def _forward_seconds(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float:
    part = comparable_part(model)
    options = without_cache(part)
    start = time.perf_counter()
    output = part(**inputs, **options)[0]
    output[0, 0, 0].item()  # waits for the device
    return time.perf_counter() - start
