"""A few words of the calibration around a token."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruning.observe.batches import Windows

BEFORE, AFTER = 10, 5
"""Tokens around the one in question."""


class Excerpt(NamedTuple):
    """A token and what is around it, as text."""

    before: str
    token: str
    after: str


def excerpts(
    windows: Windows, tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], n_processes: int = 1
) -> dict[int, Excerpt]:
    """The text around tokens of the calibration, by token.

    Args:
        tokens: as in `pruning.observe.capture.Statistics`: token t is number `t // n_processes`, counted over the
            sequences that process `t % n_processes` reads (`mikernels.ranks.Ranks.share`), without padding. Negative
            ones are unknown and left out.
    """
    shares = [windows[rank::n_processes].sequences for rank in range(n_processes)]
    ends = [torch.tensor([len(sequence) for sequence in share]).cumsum(0) for share in shares]
    found = {}
    for token in sorted({token for token in tokens if token >= 0}):
        place, rank = divmod(token, n_processes)
        row = int(torch.searchsorted(ends[rank], place, right=True))
        sequence = shares[rank][row]
        found[token] = _around(sequence, place - int(ends[rank][row]) + len(sequence), tokenizer)
    return found


def _around(sequence: Tensor, place: int, tokenizer: PreTrainedTokenizerBase) -> Excerpt:
    ids = sequence[max(0, place - BEFORE) : place + AFTER + 1].tolist()
    at = min(place, BEFORE)
    texts = [str(tokenizer.decode(ids[:end])) for end in (at, at + 1, len(ids))]
    cuts = [len(text) for text in texts[:2]]
    return Excerpt(texts[2][: cuts[0]], texts[2][cuts[0] : cuts[1]], texts[2][cuts[1] :])
