"""A stream of hidden states that runs through a model layer by layer.

Sequential repair runs two of them side by side, the dense one and the pruned one behind it. The output that a pruned
FFN should have is then known exactly: the dense hidden states after its layer, minus what the pruned stream carries
past the FFN. An FFN fitted to that also compensates for the error of earlier layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.ffn import FFN, Projection
from pruning.model.first_call import Call, first_call
from pruning.model.forward import without_cache
from pruning.model.watch import Watch
from pruning.observe.batches import Batch, model_inputs, real_positions, select_tokens


ADVICE = "use repair='lstsq' for this model"


@dataclass(frozen=True)
class Form:
    """What a layer does with the output of its FFN.

    Attributes:
        scale: it outputs `skipped + scale * added`, 1 except in families like Granite; None if it does not.
        normalizes_sum: it normalizes the sum of the FFN's input and output (BERT).
        block_is_ffn: whether the FFN's block can be run on its own.
    """

    scale: float | None
    normalizes_sum: bool
    block_is_ffn: bool


@dataclass(frozen=True)
class LayerPass:
    """What happened when one layer processed one batch of windows `[B, L]`; T tokens, without padding.

    Attributes:
        read: `[T, d]`, the input of the FFN.
        z: `[T, N]`, its neurons.
        added: `[T, d]`, its output.
        skipped: `[T, d]` float32, what bypasses the FFN, so that the layer outputs `skipped + scale * added`. None if
            the layer is not of this form but normalizes the output of the FFN (Gemma 2, OLMo 2).
        scale: 1 except in families like Granite.
    """

    read: Tensor
    z: Tensor
    added: Tensor
    skipped: Tensor | None
    scale: float


class Stream:
    """The hidden states of some windows between two layers of a model.

    Raises:
        ValueError: a layer does not read the output of the layer before it.
    """

    def __init__(self, model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
        layers = [ffn.layer for ffn in ffns]
        for ffn, layer in zip(ffns, layers, strict=True):
            if layers.count(layer) > 1:
                raise ValueError(f"{ffn.name}: expected one FFN for each layer, got several; {ADVICE}")
        self._ffns = ffns
        self._calls: list[list[Call]] = []  # by batch: the arguments of each layer but the hidden states
        self._real: list[Tensor | None] = []  # by batch: the positions that are not padding
        self._forms: list[Form] = []
        options = without_cache(model.base_model)
        self.hidden: list[Tensor] = []
        by_shape: dict[torch.Size, list[Call]] = {}
        for batch in batches:
            inputs = model_inputs(batch, model.device)
            real, shape = real_positions(inputs), inputs["input_ids"].shape
            self._real.append(real)
            run = partial(model.base_model, **inputs, **options)
            with torch.no_grad():
                # Without padding, masks and positions depend on the shape of the batch only.
                if real is None and shape in by_shape:
                    self.hidden.append(_take_hidden(first_call(ffns[0].layer, run))[0])
                    self._calls.append(by_shape[shape])
                    continue
                layer_inputs, calls = _layer_calls(ffns, run)
            self.hidden.append(layer_inputs[0])
            self._calls.append(calls)
            if real is None:
                by_shape[shape] = calls
            self._forms = self._forms or [self._form(i, hidden) for i, hidden in enumerate(layer_inputs)]

    def copy(self) -> "Stream":
        """Another stream at the same position."""
        twin = object.__new__(Stream)
        twin._ffns, twin._calls, twin._real, twin._forms = self._ffns, self._calls, self._real, self._forms
        twin.hidden = list(self.hidden)
        return twin

    def passes(self, index: int, *, advance: bool = False) -> Iterator[LayerPass]:
        """Run layer `index` batch by batch; with `advance`, move each batch on to the next layer."""
        ffn, form = self._ffns[index], self._forms[index]
        for i, hidden in enumerate(self.hidden):
            with _observed(ffn) as seen, torch.no_grad():
                after = self._run(index, i, hidden)
            if advance:
                self.hidden[i] = after
            real = self._real[i]
            read, z, added = (select_tokens(seen[part], real) for part in ("read", "z", "added"))
            skipped = None
            if form.scale is not None:
                skipped = select_tokens(after, real).float() - form.scale * added
            elif form.normalizes_sum:
                skipped = read.float()
            yield LayerPass(read, z, added, skipped, 1.0 if form.scale is None else form.scale)

    def advance(self, index: int) -> None:
        """Move on through layer `index`."""
        with torch.no_grad():
            self.hidden = [self._run(index, i, hidden) for i, hidden in enumerate(self.hidden)]

    def resume(self, index: int, passes: Sequence[LayerPass]) -> None:
        """Move on through layer `index`, whose FFN has changed since `passes`; reuses their attention if possible."""
        ffn, scale = self._ffns[index], self._forms[index].scale
        for i, (before, hidden) in enumerate(zip(passes, self.hidden, strict=True)):
            with torch.no_grad():
                if before.skipped is None or scale is None or not self._forms[index].block_is_ffn:
                    self.hidden[i] = self._run(index, i, hidden)
                    continue
                after = (before.skipped + scale * ffn.block(before.read)).to(hidden.dtype)
                real = self._real[i]
                if real is None:
                    self.hidden[i] = after.view_as(hidden)
                else:  # no token attends to padding, so that any finite values do there
                    self.hidden[i] = hidden.clone()
                    self.hidden[i][real] = after

    def _form(self, index: int, hidden: Tensor) -> Form:
        """What layer `index` does with the output of its FFN.

        The scale is found by experiment: add a multiple of the FFN's output to itself and look at the change of the
        layer's output, which must be proportional. For each token the addition is made as large as the layer's output;
        a smaller one would be lost in rounding.
        """
        ffn = self._ffns[index]
        calls: dict[nn.Module, tuple[Any, ...]] = {}  # in the order in which modules finish
        handles = [
            module.register_forward_hook(lambda module, args, _output: calls.update({module: args}))
            for module in ffn.layer.modules()
            if not any(module.children())
        ]
        try:
            with torch.no_grad(), _observed(ffn) as seen:
                after = self._run(index, 0, hidden)
        finally:
            for handle in handles:
                handle.remove()
        read, added = (seen[part].float().reshape(after.shape[:-1] + (-1,)) for part in ("read", "added"))
        last = next((args[0] for args in reversed(calls.values()) if args and isinstance(args[0], Tensor)), None)
        normalizes_sum = (
            last is not None and last.shape == added.shape == read.shape and torch.allclose(last.float(), read + added, 1e-2, 1e-3)
        )
        size = added.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        more = added * (after.float().norm(dim=-1, keepdim=True) / size)
        with torch.no_grad(), Watch([ffn.output], lambda _projection, _z, product: product + more.view_as(product).to(product)):
            change = self._run(index, 0, hidden).float() - after
        scale = float((change * more).sum() / more.square().sum()) if more.any() else 1.0
        if more.any() and not float((change - scale * more).norm()) < 0.1 * float(change.norm()):
            return Form(None, normalizes_sum, block_is_ffn=False)
        return Form(1.0 if abs(scale - 1) < 0.01 else scale, normalizes_sum=False, block_is_ffn=self._is_ffn(ffn, seen))

    def _is_ffn(self, ffn: FFN, seen: dict[str, Tensor]) -> bool:
        """Whether the block maps the input of the FFN to its output and does nothing else."""
        if ffn.block is ffn.layer:
            return False
        with torch.no_grad():
            output = ffn.block(seen["read"])
        return isinstance(output, Tensor) and torch.equal(output, seen["added"].view_as(output))

    def _run(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        call = self._calls[batch][index]
        return _output_hidden(self._ffns[index].layer(hidden, *call.args, **call.keywords))


def _layer_calls(ffns: Sequence[FFN], run: Callable[[], object]) -> tuple[list[Tensor], list[Call]]:
    """For each layer, the hidden states and the other arguments that it gets when `run` is called.

    Raises:
        ValueError: a layer does not read the output of the layer before it.
    """
    inputs: list[Tensor] = []
    calls: list[Call] = []
    last: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(calls) == len(ffns):
            raise ValueError(
                f"{ffns[0].name}: expected {len(ffns)} layers that run once, got layers that run more often; {ADVICE}"
            )
        hidden, call = _take_hidden(Call(args, keywords))
        # NaN differ from themselves, hence the comparison by identity first.
        if last and hidden is not last[-1] and not torch.equal(hidden, last[-1]):
            raise ValueError(
                f"{ffns[len(calls)].name}: expected its layer to read the output of the layer of "
                f"{ffns[len(calls) - 1].name}, got other hidden states; {ADVICE}"
            )
        inputs.append(hidden)
        calls.append(call)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        last[:] = [_output_hidden(output)]

    handles = [ffn.layer.register_forward_pre_hook(before, with_kwargs=True) for ffn in ffns]
    handles += [ffn.layer.register_forward_hook(after) for ffn in ffns]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) < len(ffns):
        raise ValueError(
            f"{ffns[len(calls)].name}: expected a layer for each of {len(ffns)} FFNs, got {len(calls)} that run; {ADVICE}"
        )
    return inputs, calls


def _take_hidden(call: Call) -> tuple[Tensor, Call]:
    """The hidden states among the arguments of a layer, and the other arguments."""
    keywords = dict(call.keywords)
    hidden = call.args[0] if call.args else keywords.pop("hidden_states")
    return hidden, Call(call.args[1:], keywords)


def _output_hidden(output: Any) -> Tensor:
    """The hidden states among the outputs of a layer."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


@contextmanager
def _observed(ffn: FFN) -> Iterator[dict[str, Tensor]]:
    """Record the input of the FFN ("read"), its neurons ("z") and its output ("added") when it runs.

    Raises:
        ValueError: it does not run.
    """
    seen: dict[str, Tensor] = {}

    def on_product(projection: Projection, values: Tensor, product: Tensor) -> None:
        if projection is ffn.output:
            seen["z"], seen["added"] = values, product
        else:
            seen["read"] = values

    with Watch([ffn.inputs[0], ffn.output], on_product):
        yield seen
    if len(seen) < 3:
        raise ValueError(f"{ffn.name}: expected its layer to run this FFN, got a layer that does not; {ADVICE}")
