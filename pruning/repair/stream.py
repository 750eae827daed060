"""A stream of hidden states that runs through a model layer by layer.

Sequential repair runs two of them side by side, the dense one and the pruned one behind it. What the pruned stream
lacks after a layer is then known exactly, and the FFNs of the layer can be fitted to make up for it, the error of
earlier layers included.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.model.ffn import FFN
from pruning.model.first_call import Call, first_call
from pruning.model.forward import body_of, without_cache
from pruning.observe.batches import Batch, model_inputs, real_positions, select_tokens
from pruning.observe.neurons import Masks, Neurons, OnNeurons, observed_neurons
from pruning.repair.form import ADVICE, Form, Run, find_form

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


class Stage(NamedTuple):
    """A layer and its FFNs."""

    layer: nn.Module
    ffns: list[FFN]


class Stream:
    """The hidden states of some windows between two layers of a model.

    Attributes:
        stages: the layers with FFNs, in their order.
        forms: what each of them does with the outputs of its FFNs.
        hidden: `[B, L, d]` of each batch, the input of the next layer.

    Raises:
        ValueError: the layers with FFNs are not one after the other in one list, or a layer does not read the output
            of the layer before it, or it does something else with the output of its FFNs than `Form` knows.
    """

    def __init__(self, model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
        self._model = model
        self._layers = _layers(model, ffns)
        self.stages = [
            Stage(layer, found)
            for layer in self._layers
            if (found := [ffn for ffn in ffns if ffn.layer is layer])
        ]
        self._positions = [self._layers.index(stage.layer) for stage in self.stages]
        self._calls: list[list[Call]] = []  # by batch: the arguments of each layer but the hidden states
        self._real: list[Tensor | None] = []  # by batch: the positions that are not padding
        self.forms: list[Form] = []
        self.hidden: list[Tensor] = []
        by_shape: dict[torch.Size, list[Call]] = {}
        for batch in batches:
            inputs = model_inputs(batch, model.device)
            if "input_ids" not in inputs:
                raise ValueError(f"{ffns[0].name}: expected calibration text for sequential repair; {ADVICE}")
            real, shape = real_positions(inputs), inputs["input_ids"].shape
            self._real.append(real)
            body = body_of(model, inputs)
            run = partial(body, **inputs, **without_cache(body))
            with torch.no_grad():
                # Of text without padding, masks and positions depend on the shape of the batch only.
                plain = inputs.keys() == {"input_ids"}
                if plain and shape in by_shape:
                    self.hidden.append(_take_hidden(first_call(self._layers[0], run))[0])
                    self._calls.append(by_shape[shape])
                    continue
                layer_inputs, calls = _layer_calls(self._layers, run)
            self.hidden.append(layer_inputs[0])
            self._calls.append(calls)
            if plain:
                by_shape[shape] = calls
            if not self.forms:
                self.forms = list(self._find_forms(layer_inputs))
        self._advance_to(0, self._positions[0])

    def copy(self) -> "Stream":
        """Another stream at the same position."""
        twin = object.__new__(Stream)
        twin.__dict__.update(self.__dict__)
        twin.hidden = list(self.hidden)
        return twin

    def passes(self, index: int, *, advance: bool = False) -> Iterator[LayerPass]:
        """Run layer `index` of `stages` batch by batch; with `advance`, move each batch on to the next one."""
        stage, position, form = self.stages[index], self._positions[index], self.forms[index]
        for i, hidden in enumerate(self.hidden):
            parts: list[Neurons] = []
            after = self._observe(stage, position, i, hidden, lambda part, parts=parts: parts.append(part))  # type: ignore[misc]
            if advance:
                self.hidden[i] = after
            rows = select_tokens(after, self._real[i])
            # Only the stream behind the dense one is fitted, so only there the gains are needed.
            gains = [] if advance else form.gains(parts, rows, self._rerun(stage, position, i, hidden))
            yield LayerPass(form.outcome(rows, parts), parts, gains)
        if advance:
            self._advance_to(position + 1, self._next(index))

    def advance(self, index: int) -> None:
        """Move on through layer `index`."""
        self._advance_to(self._positions[index], self._next(index))

    def resume(self, index: int, passes: Sequence[LayerPass]) -> None:
        """Move on through layer `index`, whose FFNs have changed since `passes`; reuses their attention if possible."""
        stage, form = self.stages[index], self.forms[index]
        if not form.block_is_ffn:
            self.advance(index)
            return
        block = stage.ffns[0].block
        for i, (before, hidden) in enumerate(zip(passes, self.hidden, strict=True)):
            part = before.parts[0]
            with torch.no_grad():
                after = (before.outcome + form.scale * (block(part.read).float() - part.added.float())).to(
                    hidden.dtype
                )
            real = self._real[i]
            if real is None:
                self.hidden[i] = after.view_as(hidden)
            else:  # no token attends to padding, so that any finite values do there
                self.hidden[i] = hidden.clone()
                self.hidden[i][real] = after
        self._advance_to(self._positions[index] + 1, self._next(index))

    def _find_forms(self, layer_inputs: Sequence[Tensor]) -> Iterator[Form]:
        for stage, position in zip(self.stages, self._positions, strict=True):
            try:
                run = self._rerun(stage, position, 0, layer_inputs[position])
                yield find_form(stage.ffns, self._real[0], run)
            except (TypeError, RuntimeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{stage.ffns[0].name}: expected a layer that runs on its own, got: {error}; {ADVICE}"
                ) from error

    def _next(self, index: int) -> int:
        """The position of the stage behind `index`; behind the last one, that of the next layer."""
        return self._positions[index + 1] if index + 1 < len(self.stages) else self._positions[index] + 1

    def _advance_to(self, position: int, end: int) -> None:
        for layer in range(position, end):
            with torch.no_grad():
                self.hidden = [self._run(layer, i, hidden) for i, hidden in enumerate(self.hidden)]

    def _observe(
        self,
        stage: Stage,
        position: int,
        batch: int,
        hidden: Tensor,
        on_neurons: OnNeurons,
    ) -> Tensor:
        masks = Masks(self._real[batch], self._real[batch], text_only=True)
        with torch.no_grad(), observed_neurons(self._model, stage.ffns, masks, on_neurons):
            return self._run(position, batch, hidden)

    def _rerun(self, stage: Stage, position: int, batch: int, hidden: Tensor) -> Run:
        """Runs a layer on a batch and returns its output without padding."""
        return lambda on_neurons: select_tokens(
            self._observe(stage, position, batch, hidden, on_neurons), self._real[batch]
        )

    def _run(self, position: int, batch: int, hidden: Tensor) -> Tensor:
        call = self._calls[batch][position]
        return _output_hidden(self._layers[position](hidden, *call.args, **call.keywords))


def check_stream(model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch]) -> None:
    """Run the layers one by one over different batches of one shape, and compare with plain forward passes.

    They differ where a layer gets other things that depend on the tokens, or that another layer leaves behind.

    Raises:
        ValueError: they differ, or see `Stream`.
    """
    stream = Stream(model, ffns, batches)
    for index in range(len(stream.stages)):
        stream.advance(index)
    outputs: list[Tensor] = []
    handle = stream.stages[-1].layer.register_forward_hook(
        lambda _module, _args, output: outputs.append(_output_hidden(output))
    )
    try:
        for batch in batches:
            inputs = model_inputs(batch, model.device)
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


def _layers(model: nn.Module, ffns: Sequence[FFN]) -> list[nn.Module]:
    """The list of layers that all FFNs are in.

    Raises:
        ValueError: they are in several lists, or in none.
    """
    wanted = {ffn.layer for ffn in ffns}
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and wanted <= set(module):
            return list(module)
    raise ValueError(
        f"{ffns[0].name}: expected all FFNs in one list of layers, got several or none; {ADVICE}"
    )


def _layer_calls(layers: Sequence[nn.Module], run: Callable[[], object]) -> tuple[list[Tensor], list[Call]]:
    """For each layer, the hidden states and the other arguments that it gets when `run` is called.

    Raises:
        ValueError: a layer does not read the output of the layer before it, or does not run exactly once.
    """
    inputs: list[Tensor] = []
    calls: list[Call] = []
    last: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(calls) == len(layers) or module is not layers[len(calls)]:
            raise ValueError(
                f"expected {len(layers)} layers that run once, in their order, got others; {ADVICE}"
            )
        hidden, call = _take_hidden(Call(args, keywords))
        # NaN differ from themselves, hence the comparison by identity first.
        if last and hidden is not last[-1] and not torch.equal(hidden, last[-1]):
            raise ValueError(
                f"layer {len(calls)}: expected the output of layer {len(calls) - 1} as its input, got other hidden "
                f"states; {ADVICE}"
            )
        inputs.append(hidden)
        calls.append(call)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        last[:] = [_output_hidden(output)]

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) < len(layers):
        raise ValueError(f"expected {len(layers)} layers that run, got {len(calls)}; {ADVICE}")
    return inputs, calls


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
