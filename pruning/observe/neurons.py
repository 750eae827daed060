"""The neurons of every FFN while a model runs, without padding; of an expert, at the tokens that are routed to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.ffn import FFN, Projection
from pruning.model.watch import Watch, one_by_one
from pruning.observe.batches import real_positions, select_tokens

TEXT = {"input_ids", "attention_mask"}
OnNeurons = Callable[[FFN, Tensor, Tensor | None], None]
"""Gets an FFN, its neurons `[T, N]`, and the gates `[T]` of an expert, or None."""


class Routing(NamedTuple):
    """How a mixture distributes its tokens.

    Attributes:
        index: `[T, k]`, the experts of each token.
        gates: `[T, k]`, by which their outputs are multiplied.
    """

    index: Tensor
    gates: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens of an expert, in the order in which `transformers` hands them to it, and their gates."""
        rank, token = torch.where(self.index.t() == expert)
        return token, self.gates[token, rank]


@contextmanager
def observed_neurons(
    model: PreTrainedModel, ffns: Sequence[FFN], inputs: Mapping[str, Tensor], on_neurons: OnNeurons
) -> Iterator[None]:
    """Within the block, run `model` on `inputs`; each FFN that runs hands its neurons to `on_neurons`."""
    by_output = {ffn.output: ffn for ffn in ffns}
    of_encoder, of_decoder = (real_positions(inputs, decoder=decoder) for decoder in (False, True))
    has_decoder = "decoder_input_ids" in inputs
    routing: dict[nn.Module, Routing | None] = {}

    def on_product(projection: Projection, z: Tensor, _product: Tensor) -> None:
        ffn = by_output[projection]
        owner = projection.owners[0]
        real = of_decoder if has_decoder and "decoder" in ffn.name.split(".") else of_encoder
        if not ffn.is_routed:
            if real is not None and real.numel() != z.shape[:-1].numel():
                if inputs.keys() <= TEXT:
                    raise ValueError(
                        f"{ffn.name}: expected {real.numel()} tokens as in attention_mask, got {z.shape[:-1].numel()}; "
                        f"calibrate on sequences of one length, without padding"
                    )
                real = None  # of another input, such as an image
            on_neurons(ffn, select_tokens(z, real), None)
        elif (routed := routing.get(owner)) is not None:
            token, gates = routed.of(projection.expert or 0)
            rows = z.flatten(0, -2)
            if len(rows) != len(token):
                raise ValueError(f"{ffn.name}: expected {len(token)} tokens for this expert, got {len(rows)}")
            kept = slice(None) if real is None else real.flatten().to(token.device)[token]
            on_neurons(ffn, rows[kept], gates[kept])
        else:  # all tokens pass through all experts, with inputs of zero where they are not routed
            rows = select_tokens(z, real)
            on_neurons(ffn, rows[rows.any(1)], None)

    def on_experts(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *keywords.values()) if isinstance(value, Tensor)]
        index = next((t for t in tensors[1:] if t.ndim == 2 and not t.is_floating_point()), None)
        gates = next((t for t in tensors[1:] if t.ndim == 2 and t.is_floating_point()), None)
        known = index is not None and gates is not None and index.shape == gates.shape
        routing[module] = Routing(index, gates) if known else None  # type: ignore[arg-type]

    stacks = {ffn.output.owners[0] for ffn in ffns if ffn.is_routed}
    handles = [stack.register_forward_pre_hook(on_experts, with_kwargs=True) for stack in stacks]
    try:
        with one_by_one(model) if stacks else nullcontext(), Watch(list(by_output), on_product):
            yield
    finally:
        for handle in handles:
            handle.remove()
