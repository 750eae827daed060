"""Batches of token sequences for a model, and which of their positions are tokens rather than padding."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
"""Arguments of a model that only reads text."""
Batch = Tensor | Mapping[str, Tensor]
"""Tokens `[B, L]`, or arguments of the model by name, such as `input_ids` and an `attention_mask` that is 0 at
padding."""


@dataclass(frozen=True)
class Windows:
    """Sequences of tokens, batched with padding behind the shorter ones.

    Attributes:
        sequences: each `[L]` int64, without padding.
        source: where they come from, for the manifest.
        padding: the token at padded positions; it influences nothing.
        decoder_start: for models with an encoder and a decoder, the first token of the decoder, which then reads the
            same sequences.
    """

    sequences: Sequence[Tensor]
    source: str = "token ids"
    padding: int = 0
    decoder_start: int | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, indices: slice | Sequence[int]) -> "Windows":
        chosen = range(len(self))[indices] if isinstance(indices, slice) else indices
        return replace(self, sequences=[self.sequences[i] for i in chosen])

    @property
    def n_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.sequences))

    def tensors(self) -> Sequence[Tensor]:
        """Everything that the model reads."""
        return self.sequences

    def rectangle(self) -> Tensor:
        """`[n, L]` without padding, for timing and for comparing outputs: the sequences of at least median length, cut
        to that length; all sequences if their lengths are equal."""
        length = sorted(len(sequence) for sequence in self.sequences)[len(self) // 2]
        return torch.stack([sequence[:length] for sequence in self.sequences if len(sequence) >= length])

    def split(self, batch_size: int) -> list[Batch]:
        """Batches of up to `batch_size` sequences in their order; a mask only where there is padding."""
        batches = [
            _batch(self.sequences[start : start + batch_size], self.padding)
            for start in range(0, len(self), batch_size)
        ]
        return (
            batches if self.decoder_start is None else [with_decoder(b, self.decoder_start) for b in batches]
        )

    def evenly(self, count: int) -> "Windows":
        """`count` of the sequences, spread evenly over all of them; all if there are fewer."""
        return self[_spread(len(self), count)]


@dataclass(frozen=True)
class Inputs:
    """Batches of arguments of a model, such as `pixel_values` or `decoder_input_ids`, as they were given.

    Attributes:
        batches: by name, each `[B, ...]`.
        source: where they come from, for the manifest.
    """

    batches: Sequence[Mapping[str, Tensor]]
    source: str

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, indices: slice) -> "Inputs":
        return replace(self, batches=self.batches[indices])

    @property
    def n_tokens(self) -> int:
        """Tokens of text without padding, or examples of anything else."""
        return sum(map(count_tokens, self.batches))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of text; 0 without text."""
        return max((batch["input_ids"].shape[1] for batch in self.batches if "input_ids" in batch), default=0)

    def tensors(self) -> Sequence[Tensor]:
        """Everything that the model reads."""
        return [batch[name] for batch in self.batches for name in sorted(batch)]

    def split(self, _batch_size: int) -> list[Batch]:
        """The batches."""
        return list(self.batches)

    def evenly(self, count: int) -> "Inputs":
        """`count` of the batches, spread evenly over all of them; all if there are fewer."""
        return replace(self, batches=[self.batches[i] for i in _spread(len(self), count)])


def with_decoder(batch: Batch, start: int) -> dict[str, Tensor]:
    """The batch with its own tokens as those of the decoder, behind the token `start`."""
    inputs = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
    ids = inputs["input_ids"]
    inputs["decoder_input_ids"] = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    if "attention_mask" in inputs:
        inputs["decoder_attention_mask"] = inputs["attention_mask"]
    return inputs


def by_name(batch: Batch) -> Mapping[str, Tensor]:
    """The arguments of a model for a batch."""
    return {"input_ids": batch} if isinstance(batch, Tensor) else batch


def model_inputs(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """The arguments of a model for a batch, on `device`; without a mask if there is no padding."""
    masks = ("attention_mask", "decoder_attention_mask")
    return {
        name: value.to(device)
        for name, value in by_name(batch).items()
        if name not in masks or not bool(value.bool().all())
    }


def real_positions(inputs: Mapping[str, Tensor], *, decoder: bool = False) -> Tensor | None:
    """Which positions of the inputs, or of the decoder's, hold tokens, `[B, L]` bool; None if all do."""
    mask = inputs.get("decoder_attention_mask" if decoder else "attention_mask")
    return None if mask is None else mask.bool()


def select_tokens(values: Tensor, real: Tensor | None) -> Tensor:
    """The rows `[T, ...]` of values `[B, L, ...]` (or `[B x L, ...]`) at the real positions."""
    if real is None:
        return values if values.ndim == 2 else values.flatten(0, 1)
    rows = values if values.ndim == 2 else values.flatten(0, 1)
    return rows[real.flatten().to(rows.device)]


def count_tokens(batch: Batch) -> int:
    """Tokens of text in a batch without padding, or examples of anything else."""
    inputs = by_name(batch)
    if "input_ids" not in inputs:
        return len(next(iter(inputs.values())))
    real = real_positions(inputs)
    return inputs["input_ids"].numel() if real is None else int(real.sum())


def unpadded(ids: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """The sequences of a batch `[B, L]` without their padding on either side.

    Raises:
        ValueError: a sequence of padding only, or a mask with padding between tokens.
    """
    for row in range(len(ids)):
        if mask is None:
            yield ids[row]
            continue
        real = mask[row].bool().nonzero().flatten()
        if len(real) == 0 or int(real[-1] - real[0]) + 1 != len(real):
            got = "between tokens" if len(real) else "only"
            raise ValueError(
                f"calibration: expected an attention_mask with padding at the ends of sequences, got padding {got}"
            )
        yield ids[row, int(real[0]) : int(real[-1]) + 1]


def _spread(length: int, count: int) -> list[int]:
    """`count` of the indices below `length`, evenly spread; all if there are fewer."""
    count = min(count, length)
    return [i * length // count for i in range(count)]


def _batch(sequences: Sequence[Tensor], padding: int) -> Batch:
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) == max(lengths):
        return torch.stack(list(sequences))
    ids = torch.full((len(sequences), max(lengths)), padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}
