"""Two streams of hidden states through a model, layer by layer: the dense one and the pruned one behind it.

What a pruned FFN should add is then known exactly: the dense residual after its layer, less what the pruned stream
carries past the FFN. Fitted to that, it also makes up for what earlier layers lost.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.families import FFN


@dataclass(frozen=True)
class Step:
    """What one batch of windows `[B, L]` did in one layer; T = B x L tokens.

    Attributes:
        read: `[T, d]`, what the FFN reads.
        z: `[T, N]`, its neurons.
        added: `[T, d]`, the FFN's output.
        skipped: `[T, d]` float32, what goes past the FFN, so that the layer gives `skipped + scale * added`; None
            where it does not, but norms what the FFN gives (Gemma 2, OLMo 2).
        scale: 1 but in families like Granite.
    """

    read: Tensor
    z: Tensor
    added: Tensor
    skipped: Tensor | None
    scale: float


class Stream:
    """The hidden states of some windows between two layers of a model."""

    def __init__(self, model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Tensor]) -> None:
        self._ffns = ffns
        self._calls: dict[int, list[tuple[Any, Any]]] = {}
        self._scales: list[float | None] = []
        options = {"use_cache": False} if model.can_generate() else {}
        self.hidden: list[Tensor] = []
        for batch in batches:
            # Windows of one length without padding: masks and positions differ with the size of a batch only.
            whole = len(batch) not in self._calls
            with _calls(ffns, stop=not whole) as seen, torch.no_grad(), suppress(_StopForward):
                model.base_model(input_ids=batch.to(model.device), **options)
            self.hidden.append(seen[0][0])
            if whole:
                self._calls[len(batch)] = [(rest, keywords) for _, rest, keywords in seen]
                self._scales = self._scales or [self._scale(i, hidden) for i, (hidden, *_) in enumerate(seen)]

    def copy(self) -> "Stream":
        """Another stream at the same place."""
        twin = object.__new__(Stream)
        twin._ffns, twin._calls, twin._scales = self._ffns, self._calls, self._scales
        twin.hidden = list(self.hidden)
        return twin

    def steps(self, index: int, *, advance: bool = False) -> Iterator[Step]:
        """Run layer `index` batch by batch; with `advance` each batch moves on behind it."""
        ffn = self._ffns[index]
        for i, hidden in enumerate(self.hidden):
            with _observed(ffn) as seen, torch.no_grad():
                after = self._run(index, hidden)
            if advance:
                self.hidden[i] = after
            read, z, added = (seen[part].flatten(0, -2) for part in ("read", "z", "added"))
            scale, skipped = self._scales[index], None
            if scale is not None:
                skipped = after.flatten(0, -2).float() - scale * added
            elif ffn.normed_after:
                skipped = read.float()
            yield Step(read, z, added, skipped, 1.0 if scale is None else scale)

    def advance(self, index: int) -> None:
        """Move on through layer `index`."""
        with torch.no_grad():
            self.hidden = [self._run(index, hidden) for hidden in self.hidden]

    def resume(self, index: int, steps: Sequence[Step]) -> None:
        """Move on through layer `index`, whose FFN is another by now, from what `steps` say that it reads."""
        ffn, scale = self._ffns[index], self._scales[index]
        for i, (step, hidden) in enumerate(zip(steps, self.hidden, strict=True)):
            with torch.no_grad():
                if step.skipped is None or scale is None or ffn.reader is not ffn.block:
                    self.hidden[i] = self._run(index, hidden)
                else:  # spares the attention
                    after = step.skipped + scale * ffn.block(step.read)
                    self.hidden[i] = after.to(hidden.dtype).view_as(hidden)

    def _scale(self, index: int, hidden: Tensor) -> float | None:
        """What layer `index` multiplies the output of its FFN by before it adds it, None where it does something else.

        More of that output is then proportionally more of the layer's. Each token gets so much more that it is as large
        as the layer's output, whose rounding would else drown it.
        """
        ffn = self._ffns[index]
        with torch.no_grad(), _observed(ffn) as seen:
            after = self._run(index, hidden)
            added = seen["added"].float()
            size = added.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            more = added * (after.float().norm(dim=-1, keepdim=True) / size)
            handle = ffn.output.register_forward_hook(lambda _module, _args, output: output + more.to(output))
            try:
                change = self._run(index, hidden).float() - after
            finally:
                handle.remove()
        if not more.any():
            return 1.0
        scale = float((change * more).sum() / more.square().sum())
        if not float((change - scale * more).norm()) < 0.1 * float(change.norm()):
            return None
        return 1.0 if abs(scale - 1) < 0.01 else scale

    def _run(self, index: int, hidden: Tensor) -> Tensor:
        rest, keywords = self._calls[len(hidden)][index]
        return _hidden(self._ffns[index].layer(hidden, *rest, **keywords))


class _StopForward(Exception):  # noqa: N818, it ends a forward pass that has done its work
    pass


@contextmanager
def _calls(ffns: Sequence[FFN], *, stop: bool) -> Iterator[list[tuple[Tensor, Any, Any]]]:
    """The arguments that each layer is called with: hidden states, the other positional ones, keywords."""
    seen: list[tuple[Tensor, Any, Any]] = []
    last: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        keywords = dict(keywords)
        hidden = args[0] if args else keywords.pop("hidden_states")
        if last and hidden is not last[-1] and not torch.equal(hidden, last[-1]):  # NaN too is what it wrote
            raise ValueError(
                f"{ffns[len(seen)].name}: expected its layer to read what the layer of {ffns[len(seen) - 1].name} "
                f"wrote; where something stands between them, repair='lstsq' is what goes"
            )
        seen.append((hidden, args[1:], keywords))
        if stop:
            raise _StopForward

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        last[:] = [_hidden(output)]

    handles = [ffn.layer.register_forward_pre_hook(before, with_kwargs=True) for ffn in ffns]
    handles += [ffn.layer.register_forward_hook(after) for ffn in ffns]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _hidden(output: Any) -> Tensor:
    """The hidden states among what a layer returns."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


@contextmanager
def _observed(ffn: FFN) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def reads(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["read"] = args[0]

    def adds(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["z"], seen["added"] = args[0], output

    handles = [ffn.inputs[0].register_forward_pre_hook(reads), ffn.output.register_forward_hook(adds)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
