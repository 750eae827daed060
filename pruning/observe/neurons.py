"""The neurons of every FFN while a model runs, without padding; of an expert, at the tokens that are routed to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.model.ffn import FFN, Projection
from pruning.model.watch import Watch, one_by_one
from pruning.observe.batches import real_positions

TEXT = {"input_ids", "attention_mask"}


class Neurons(NamedTuple):
    """One FFN in one pass of a batch; t tokens of the T that are not padding.

    Attributes:
        ffn: which.
        read: `[t, d]`, its input.
        z: `[t, N]`, its neurons.
        added: `[t, d]`, its output; of an expert, before its gate and its bias.
        token: `[t]`, which of the T tokens; None for all of them.
        n_rows: of the product, T unless the tokens of an expert are chosen elsewhere.
        gates: `[t]`, by which a mixture multiplies the outputs of this expert; None for other FFNs.
    """

    ffn: FFN
    read: Tensor
    z: Tensor
    added: Tensor
    token: Tensor | None
    gates: Tensor | None
    n_rows: int

    def tokens(self, start: int, end: int) -> Tensor | None:
        """`[t]`, which tokens of the calibration these are, if `start` to `end` are those of the batch; None for rows
        that are no tokens of it, such as those of an image."""
        if self.token is not None:
            return start + self.token
        return torch.arange(start, end) if len(self.z) == end - start else None


OnNeurons = Callable[[Neurons], Tensor | None]
"""Gets the neurons of an FFN; may return `[t, d]` to add to its output."""


class Masks(NamedTuple):
    """Which positions of a batch are tokens, `[B, L]` bool, or None if all are.

    Attributes:
        encoder, decoder: of the inputs of the encoder, or of the whole model, and of the decoder.
        text_only: whether the model reads nothing but text.
    """

    encoder: Tensor | None
    decoder: Tensor | None
    text_only: bool

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> "Masks":
        encoder = real_positions(inputs)
        decoder = real_positions(inputs, decoder=True) if "decoder_input_ids" in inputs else encoder
        return cls(encoder, decoder, inputs.keys() <= TEXT)

    def select(self, ffn: FFN, n_rows: int) -> Tensor | None:
        """The rows of an FFN that are tokens; None for all.

        Raises:
            ValueError: it has other rows than the mask, and no other input explains that.
        """
        mask = self.decoder if "decoder" in ffn.name.split(".") else self.encoder
        if mask is None or not ffn.reads_text:
            return None
        if mask.numel() == n_rows:
            return mask.flatten()
        if self.text_only or ffn.is_routed:
            raise ValueError(
                f"{ffn.name}: expected {mask.numel()} tokens as in attention_mask, got {n_rows}; calibrate on "
                f"sequences of one length, without padding"
            )
        return None  # of another input, such as an image


class _Routing(NamedTuple):
    """How a mixture distributes its tokens: `[T, k]` the experts of each, and what their outputs are multiplied by."""

    experts: Tensor
    gates: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens of an expert, in the order in which `transformers` hands them to it, and their gates."""
        rank, token = torch.where(self.experts.t() == expert)
        return token, self.gates[token, rank]


@contextmanager
def observed_neurons(
    model: nn.Module, ffns: Sequence[FFN], masks: Masks, on_neurons: OnNeurons
) -> Iterator[None]:
    """Within the block, run `model`, or a part of it, on one batch; each FFN that runs calls `on_neurons`."""
    by_output = {ffn.output: ffn for ffn in ffns}
    by_input = {ffn.inputs[0]: ffn for ffn in ffns}
    reads: dict[FFN, Tensor] = {}
    routing: dict[nn.Module, _Routing | None] = {}

    def on_product(projection: Projection, values: Tensor, product: Tensor) -> Tensor | None:
        if projection in by_input:
            reads[by_input[projection]] = values.flatten(0, -2)
            return None
        ffn = by_output[projection]
        routed = routing.get(projection.owners[0])
        if ffn not in reads:
            raise ValueError(
                f"{ffn.name}: expected a product with its input projection before that with its output projection, got "
                f"none; this architecture cannot be pruned"
            )
        z, added, read = values.flatten(0, -2), product.flatten(0, -2), reads.pop(ffn)
        rows, token, gates = _rows(ffn, z, masks, routed)
        chosen = slice(None) if rows is None else rows
        part = Neurons(ffn, read[chosen], z[chosen], added[chosen], token, gates, len(z))
        change = on_neurons(part)
        if change is None:
            return None
        changed = added.clone()
        changed[chosen] += change.to(changed)
        return changed.view_as(product)

    def on_experts(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *keywords.values()) if isinstance(value, Tensor)]
        index = next((t for t in tensors if not t.is_floating_point()), None)
        gates = next(
            (t for t in tensors if index is not None and t.shape == index.shape and t is not index), None
        )
        known = index is not None and gates is not None
        routing[module] = _Routing(index, gates) if known else None  # type: ignore[arg-type]

    stacks = {ffn.output.owners[0] for ffn in ffns if ffn.is_routed}
    handles = [stack.register_forward_pre_hook(on_experts, with_kwargs=True) for stack in stacks]
    try:
        with one_by_one(model) if stacks else nullcontext(), Watch([*by_input, *by_output], on_product):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(
    ffn: FFN, z: Tensor, masks: Masks, routed: _Routing | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Which rows of `z` are tokens, which of the tokens without padding they are, and their gates; None for all."""
    if not ffn.is_routed:
        return masks.select(ffn, len(z)), None, None
    if routed is not None:
        token, gates = routed.of(ffn.output.expert or 0)
        if len(token) != len(z):
            raise ValueError(f"{ffn.name}: expected {len(token)} tokens for this expert, got {len(z)}")
        real = masks.select(ffn, len(routed.experts))
        rows = torch.ones_like(token, dtype=torch.bool) if real is None else real.to(token.device)[token]
    else:  # all tokens pass through all experts, as zeros where they are not routed
        token, gates = torch.arange(len(z), device=z.device), None
        real = masks.select(ffn, len(z))
        rows = z.any(1) if real is None else z.any(1) & real.to(z.device)
    if real is not None:
        token = real.to(token.device).cumsum(0)[token] - 1
    return rows, token[rows], None if gates is None else gates[rows]
