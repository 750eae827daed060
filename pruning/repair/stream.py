"""A stream of hidden states that runs through a model layer by layer.

Sequential repair runs two of them side by side, the dense one and the pruned one behind it. What the pruned stream
lacks after a layer is then known exactly, and the FFNs of the layer can be fitted to make up for it, and for a part of
the error of earlier layers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.device import input_device
from pruning.model.ffn import FFN
from pruning.model.first_call import Call, first_call
from pruning.model.forward import body_of, without_cache
from pruning.model.layers import IN_MEMORY, Layers, layer_list
from pruning.observe.batches import Batch, count_tokens, model_inputs, real_positions, select_tokens
from pruning.observe.neurons import Masks, Neurons, OnNeurons, observed_neurons
from pruning.repair.form import ADVICE, Form, Run, find_form
from pruning.repair.memory_budget import NO_LIMIT, MemoryBudget

DIMENSIONS = 3
"""Of hidden states `[B, L, d]`; some architectures have several streams of them."""


STREAM_TOLERANCE = 0.01
"""Relative difference from rounding; the operations are the same."""


class LayerPass(NamedTuple):
    """What happened when one layer processed one batch of windows `[B, L]`; T tokens, without padding.

    Attributes:
        outcome: `[T, d]` float32, what repair brings closest to the dense model (`pruning.repair.form`).
        parts: the FFNs that ran.
        gains: by what the layer multiplies the output of each of them.
    """

    outcome: Tensor
    parts: list[Neurons]
    gains: list[Tensor]


class Bypass(NamedTuple):
    """What a layer does with one batch apart from its only FFN; T tokens, without padding.

    Attributes:
        rest: `[T, d]` float32, the output of the layer without what the FFN adds.
        read: `[T, d]`, the input of the FFN.
    """

    rest: Tensor
    read: Tensor


class Stream:
    """The hidden states of some windows between two layers of a model.

    Attributes:
        layers: all layers of the model, in their order.
        ffns: those to prune of each layer.
        last: the index of the last layer with FFNs to prune.
        hidden: `[B, L, d]` of each batch, the input of the next layer; what exceeds the memory budget is elsewhere.
        tokens: of each batch, how many, without padding.

    Raises:
        ValueError: the layers with FFNs are not one after the other in one list, or a layer does not read the output
            of the layer before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ffns: Sequence[FFN],
        batches: Sequence[Batch],
        source: Layers = IN_MEMORY,
        budget: MemoryBudget = NO_LIMIT,
    ) -> None:
        self._model, self._budget = model, budget
        self.layers = layer_list(model, ffns)
        self.ffns = [[ffn for ffn in ffns if ffn.layer is layer] for layer in self.layers]
        self.last = max(index for index, found in enumerate(self.ffns) if found)
        self._calls: list[list[Call]] = []  # by batch: the arguments of each layer but the hidden states
        self._real: list[Tensor | None] = []  # by batch: the positions that are not padding
        self._forms: dict[int, Form] = {}
        self.hidden: list[Tensor] = []
        self._devices: list[torch.device] = []  # by batch: where the layers run
        self.tokens = [count_tokens(batch) for batch in batches]
        by_shape: dict[torch.Size, list[Call]] = {}
        for batch in batches:
            inputs = model_inputs(batch, input_device(model))
            if "input_ids" not in inputs:
                raise ValueError(f"{ffns[0].name}: expected calibration text for sequential repair; {ADVICE}")
            real, shape = real_positions(inputs), inputs["input_ids"].shape
            self._real.append(real)
            body = body_of(model, inputs)
            run = partial(body, **inputs, **without_cache(body))
            # Of text without padding, masks and positions depend on the shape of the batch only.
            plain = inputs.keys() == {"input_ids"}
            with torch.no_grad():
                if plain and shape in by_shape:
                    hidden, calls = _take_hidden(first_call(self.layers[0], run))[0], by_shape[shape]
                else:
                    hidden, calls = _layer_calls(self.layers, run, source)
            self.hidden.append(budget.keep(hidden))
            self._devices.append(hidden.device)
            self._calls.append(calls)
            if plain:
                by_shape[shape] = calls

    def copy(self) -> "Stream":
        """Another stream at the same position."""
        twin = object.__new__(Stream)
        twin.__dict__.update(self.__dict__)
        twin.hidden = list(self.hidden)
        return twin

    def count_rows(self) -> int:
        """How many rows the FFNs have in all batches: the tokens, and what some architectures add to them."""
        return sum(
            hidden.shape[:-1].numel() if real is None else int(real.sum())
            for hidden, real in zip(self.hidden, self._real, strict=True)
        )

    def passes(self, index: int, *, advance: bool = False) -> Iterator[LayerPass]:
        """Run layer `index`, which has FFNs, batch by batch; with `advance`, move each batch on to the next one.

        Raises:
            ValueError: the layer does something else with the output of its FFNs than `Form` knows.
        """
        form = self.find_form(index)
        for i in range(len(self.hidden)):
            hidden = self._on_device(i)
            parts: list[Neurons] = []
            after = self._observe(index, i, hidden, lambda part, parts=parts: parts.append(part))  # type: ignore[misc]
            if advance:
                self.hidden[i] = self._budget.keep(after)
            rows = select_tokens(after, self._real[i])
            # Only the stream behind the dense one is fitted, so only there the gains are needed.
            gains = [] if advance else form.gains(parts, rows, self._rerun(index, i, hidden))
            yield LayerPass(form.outcome(rows, parts), parts, gains)

    def advance(self, index: int) -> None:
        """Move on through layer `index`."""
        with torch.no_grad():
            for i in range(len(self.hidden)):
                self.hidden[i] = self._budget.keep(self._run(index, i, self._on_device(i)))

    def bypass(self, index: int, batch: int, before: LayerPass) -> Bypass | None:
        """What to keep of the pass of a batch through layer `index` to resume behind it, in place of its hidden states;
        None if the layer has to run again."""
        form = self.find_form(index)
        if not form.block_is_ffn:
            return None
        (part,) = before.parts
        hidden = self.hidden[batch]
        self.hidden[batch] = hidden.new_zeros(1, 1, 1).expand_as(hidden)  # takes no memory
        rest = before.outcome - form.scale * part.added.float()
        return Bypass(self._budget.keep(rest), self._budget.keep(part.read))

    def resume(self, index: int, bypasses: list[Bypass | None]) -> None:
        """Move on through layer `index`, whose FFNs have changed since its passes; runs only the FFN if possible.

        Args:
            bypasses: of all batches; each is let go when it was used.
        """
        form = self.find_form(index)
        if not form.block_is_ffn:
            self.advance(index)
            return
        block = self.ffns[index][0].block
        for i in range(len(self.hidden)):
            hidden = self._on_device(i)
            bypass, bypasses[i] = bypasses[i], None
            assert bypass is not None  # noqa: S101, for the type checker
            with torch.no_grad():
                added = form.scale * block(bypass.read.to(hidden.device)).float()
                after = (bypass.rest.to(added.device) + added).to(hidden.dtype)
            real = self._real[i]
            if real is None:
                after = after.view_as(hidden)
            else:  # no token attends to padding, so that any finite values do there
                tokens, after = after, hidden.clone(memory_format=torch.contiguous_format)
                after[real] = tokens
            self.hidden[i] = self._budget.keep(after)

    def find_form(self, index: int) -> Form:
        """What the layer does with the outputs of its FFNs, found on the first batch before it moves on."""
        if index not in self._forms:
            ffns = self.ffns[index]
            try:
                self._forms[index] = find_form(ffns, self._real[0], self._rerun(index, 0, self._on_device(0)))
            except (TypeError, RuntimeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{ffns[0].name}: expected a layer that runs on its own, got: {error}; {ADVICE}"
                ) from error
        return self._forms[index]

    def _on_device(self, batch: int) -> Tensor:
        """The hidden states of a batch where the layers run."""
        return self.hidden[batch].to(self._devices[batch])

    def _observe(self, index: int, batch: int, hidden: Tensor, on_neurons: OnNeurons) -> Tensor:
        masks = Masks(self._real[batch], self._real[batch], text_only=True)
        with torch.no_grad(), observed_neurons(self._model, self.ffns[index], masks, on_neurons):
            return self._run(index, batch, hidden)

    def _rerun(self, index: int, batch: int, hidden: Tensor) -> Run:
        """Runs a layer on a batch and returns its output without padding."""
        return lambda on_neurons: select_tokens(
            self._observe(index, batch, hidden, on_neurons), self._real[batch]
        )

    def _run(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        call = self._calls[batch][index]
        return _output_hidden(self.layers[index](hidden, *call.args, **call.keywords))


def check_stream(model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
    """Run the layers one by one over different batches of one shape, and compare with plain forward passes.

    They differ where a layer gets other things that depend on the tokens, or that another layer leaves behind.

    Raises:
        ValueError: they differ, or see `Stream`.
    """
    stream = Stream(model, ffns, batches)
    for index in range(stream.last + 1):
        if stream.ffns[index]:
            stream.find_form(index)
        stream.advance(index)
    outputs: list[Tensor] = []
    handle = stream.layers[stream.last].register_forward_hook(
        lambda _module, _args, output: outputs.append(_output_hidden(output))
    )
    try:
        for batch in batches:
            inputs = model_inputs(batch, input_device(model))
            body = body_of(model, inputs)
            with torch.no_grad():
                body(**inputs, **without_cache(body))
    finally:
        handle.remove()
    for got, expected in zip(stream.hidden, outputs, strict=True):
        if float((got.float() - expected.float()).norm()) > STREAM_TOLERANCE * float(expected.float().norm()):
            raise ValueError(
                f"{ffns[0].name}: expected layers that depend on their input only, got other hidden states one by one "
                f"than in the whole model; {ADVICE}"
            )


def _layer_calls(
    layers: Sequence[nn.Module], run: Callable[[], object], source: Layers
) -> tuple[Tensor, list[Call]]:
    """The hidden states that the first layer gets when `run` is called, and for each layer the other arguments.

    Only the first layer computes. The others pass its output on, since what a layer gets beside the hidden states does
    not depend on them (`check_stream`); so they need no weights.

    Raises:
        ValueError: a layer does not read the output of the layer before it, or does not run exactly once.
    """
    first: list[Tensor] = []
    calls: list[Call] = []
    last: list[Any] = []

    def stand_in(index: int, layer: nn.Module) -> Callable[..., Any]:
        forward = layer.forward

        def record(*args: Any, **keywords: Any) -> Any:
            if len(calls) == len(layers) or index != len(calls):
                raise ValueError(
                    f"expected {len(layers)} layers that run once, in their order, got others; {ADVICE}"
                )
            hidden, call = _take_hidden(Call(args, keywords))
            calls.append(call)
            if index == 0:
                first.append(hidden)
                with source.held(layer):
                    return forward(*args, **keywords)
            # NaN differ from themselves, hence the comparison by identity first.
            if hidden is not (passed := _output_hidden(last[0])) and not torch.equal(hidden, passed):
                raise ValueError(
                    f"layer {index}: expected the output of layer {index - 1} as its input, got other hidden "
                    f"states; {ADVICE}"
                )
            return last[0]

        return record

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        last[:] = [output]

    handles = [layer.register_forward_hook(after) for layer in layers]
    own = [vars(layer).get("forward") for layer in layers]  # such as a hook of accelerate
    try:
        for index, layer in enumerate(layers):
            layer.forward = stand_in(index, layer)
        run()
    finally:
        for handle in handles:
            handle.remove()
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
    if len(calls) < len(layers):
        raise ValueError(f"expected {len(layers)} layers that run, got {len(calls)}; {ADVICE}")
    return first[0], calls


def _take_hidden(call: Call) -> tuple[Tensor, Call]:
    """The hidden states among the arguments of a layer, and the other arguments."""
    keywords = dict(call.keywords)
    hidden = call.args[0] if call.args else keywords.pop("hidden_states", None)
    if not isinstance(hidden, Tensor) or hidden.ndim != DIMENSIONS:
        raise ValueError(f"expected layers that read hidden states [B, L, d] first, got others; {ADVICE}")
    return hidden, Call(call.args[1:], keywords)


def _output_hidden(output: Any) -> Tensor:
    """The hidden states among the outputs of a layer."""
    hidden = output if isinstance(output, Tensor) else output[0]
    if not isinstance(hidden, Tensor) or hidden.ndim != DIMENSIONS:
        raise ValueError(f"expected layers that output hidden states [B, L, d] first, got others; {ADVICE}")
    return hidden
