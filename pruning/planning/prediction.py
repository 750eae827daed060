"""The stages of a run, with the seconds, memory and disk of each: added up over the layers of the model."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from pruning.observe.calibration import COMPARISON_TOKENS
from pruning.planning import work
from pruning.planning.available import own_memory
from pruning.planning.rates import Rates
from pruning.planning.shapes import ModelShapes
from pruning.planning.work import FFNShape, LayerShape, Work
from pruning.prepare import measures_all_first

WORKSPACE = 2**30
"""Bytes that the mutual information of all pairs may use (`mikernels.memory`)."""


class Stage(NamedTuple):
    """A stage of all layers together, by the name that it has in the report of a run.

    Attributes:
        seconds: predicted.
        disk_bytes: read and written.
        memory: the most that the process has on the device during it, in bytes.
        operations: what the seconds follow from.
    """

    name: str
    seconds: float
    disk_bytes: int
    memory: int
    operations: Work


class Prediction:
    """Adds up the layers."""

    def __init__(
        self,
        shapes: ModelShapes,
        computing: torch.dtype,
        device: str,
        *,
        from_disk: bool,
        save_statistics: bool,
    ) -> None:
        self._shapes, self._settings = shapes, shapes.settings
        self._size, self._stored = computing.itemsize, shapes.dtype.itemsize
        self._on_cpu, self._from_disk = device == "cpu", from_disk
        self._sequential = self._settings.repair == "sequential"
        self._walks = 1 + measures_all_first(self._settings, save_statistics=save_statistics)

    def stages(self, rates: Rates) -> Iterator[Stage]:
        """The stages, in their order."""
        read = self._shapes.bytes[0] * (self._walks if self._from_disk else 1)
        written = self._shapes.bytes[1] + self._states()
        works: dict[str, Work] = {
            "capture": sum((self._capture(layer) for layer in self._shapes.layers), Work(read=read)),
            "measure": sum((self._measure(layer) for layer in self._shapes.layers), Work()),
            **self._sensitivity(),
            "select": sum((self._select(layer) for layer in self._shapes.layers), Work()),
            "repair": sum((self._repair(layer) for layer in self._shapes.layers), Work(write=written)),
        }
        memory = self._memory(works)
        for name, total in works.items():
            yield Stage(name, total.seconds(rates), int(total.read + total.write), memory[name], total)

    def disk(self) -> int:
        """Bytes beside the model: the result, two versions of the state, what a first walk keeps, and what exceeds the
        memory budget."""
        kept = 0
        if self._walks > 1:
            sample = self._settings.sample_size * self._size
            kept = sum(
                f.count * (8 * f.width**2 + sample * f.width) for x in self._shapes.layers for f in x.ffns
            )
        exceeding = max(map(self._exceeding, self._shapes.layers))
        return self._shapes.bytes[1] + 2 * self._state() + kept + exceeding

    def _tokens(self) -> int:
        return self._settings.calibration_tokens

    def _state(self) -> int:
        """Bytes of the hidden states that are written behind a layer."""
        if not self._from_disk:
            return 0
        return (1 + self._sequential) * self._tokens() * self._shapes.layers[0].hidden * self._size

    def _states(self) -> int:
        return self._state() * len(self._shapes.layers)

    def _capture(self, layer: LayerShape) -> Work:
        """The streams, and the moments."""
        tokens, length = self._tokens(), self._settings.sequence_length
        once = work.forward(layer, tokens, length)
        total = once
        for ffn in layer.ffns:
            total += work.moments(ffn, tokens)
        if self._walks > 1:
            total += once
        share = self._exceeding(layer) / self._kept(layer)
        moved = share * (self._kept(layer) + (self._walks - 1 + self._sequential) * self._hidden(layer))
        total += Work(read=moved, write=moved)
        if self._sequential:
            total += once
            for ffn in layer.ffns:
                total += work.examples(ffn, tokens)
        return total

    def _measure(self, layer: LayerShape) -> Work:
        total = Work()
        for ffn in layer.ffns:
            n_drop = ffn.width - ffn.kept
            if self._walks > 1:
                n_drop = max(ffn.width // 2, int(self._settings.max_layer_ratio * ffn.width))
            elif self._settings.criterion != "conditional-mi":
                n_drop = 0
            total += work.eliminate(ffn, n_drop, on_cpu=self._on_cpu)
            if self._walks > 1 or self._settings.criterion in ("pairwise-mi", "random-pairs"):
                total += Work(pair=ffn.count * ffn.width**2 / 2)
        return total

    def _sensitivity(self) -> dict[str, Work]:
        """The stage that halves each layer in turn, if the budget asks for it."""
        if self._settings.budget != "kl":
            return {}
        layers = [layer for layer in self._shapes.layers if layer.ffns]
        n_tokens = (1 + len(layers)) * min(COMPARISON_TOKENS, self._tokens())
        total = Work(product=2 * n_tokens * self._shapes.parameters[0])
        lstsq = replace(self._settings, repair="lstsq")
        return {"sensitivity": sum((work.repair(f, lstsq) for layer in layers for f in layer.ffns), total)}

    def _select(self, layer: LayerShape) -> Work:
        return sum((work.explain(ffn) for ffn in layer.ffns), Work())

    def _repair(self, layer: LayerShape) -> Work:
        total = sum((work.repair(ffn, self._settings) for ffn in layer.ffns), Work())
        if self._settings.refine:
            total += sum((work.refine(ffn, self._tokens()) for ffn in layer.ffns), Work())
        return total + work.again(layer, self._tokens()) if self._sequential else total

    def _memory(self, stages: Iterable[str]) -> dict[str, int]:
        """The most at a time in each stage, bytes."""
        base = own_memory() if self._on_cpu else 0
        layers = [layer for layer in self._shapes.layers if layer.ffns]
        converted, pruned = 0, 0
        if not self._from_disk:
            values = self._shapes.bytes[0] // self._stored
            base += values * self._size
            converted = values * self._stored * (self._size != self._stored)  # while the model is loaded
            # The dense weights stay until the end, so that an error can put them back.
            kept = sum(f.weights * f.kept // f.width for layer in layers for f in layer.ffns)
            pruned = kept * self._size
        opening = self._shapes.body // self._stored * (self._size + self._stored) if self._from_disk else 0
        peaks = {"capture": base + max(converted, opening + self._within(self._hidden(layers[0])))}
        for name in stages:
            most = max(self._held(layer) + self._beyond(name, layer) for layer in layers)
            # Each layer is measured after those before it were pruned, unless a first walk measures all of them.
            before = name == "sensitivity" or (self._walks > 1 and name in ("capture", "measure"))
            peaks[name] = max(peaks.get(name, 0), base + most + pruned * (not before))
        return peaks

    def _hidden(self, layer: LayerShape) -> int:
        """The hidden states of one stream."""
        return self._tokens() * layer.hidden * self._size

    def _kept(self, layer: LayerShape) -> int:
        """What is kept of all tokens, which a memory budget is for."""
        kept = self._hidden(layer)
        if self._sequential:
            # Of a single FFN, its input and what bypasses it take the place of the hidden states of the pruned stream.
            single = len(layer.ffns) == 1 and layer.ffns[0].count == 1
            kept += self._hidden(layer) + (4 * self._tokens() * layer.hidden if single else 0)
            if self._settings.refine:  # the targets in parts and as a whole
                kept += self._hidden(layer) + 8 * self._tokens() * layer.hidden
        return kept

    def _within(self, kept: int) -> int:
        """What of it is on the device."""
        budget = self._settings.memory_budget
        return kept if budget is None else min(kept, budget)

    def _exceeding(self, layer: LayerShape) -> int:
        """What of it is on disk."""
        return self._kept(layer) - self._within(self._kept(layer)) if self._on_cpu else 0

    def _held(self, layer: LayerShape) -> int:
        """What a layer has in memory from the first to the last stage."""
        held = self._within(self._kept(layer)) + (layer.weights * self._size if self._from_disk else 0)
        if self._sequential:
            held += sum(4 * f.count * f.width * (f.width + f.outputs) for f in layer.ffns)
        return held

    def _beyond(self, stage: str, layer: LayerShape) -> int:
        """What only this stage needs."""
        statistics = sum(
            f.count * f.width * (4 * f.width + self._settings.sample_size * self._size) for f in layer.ffns
        )
        widest = max(layer.ffns, key=lambda f: f.width)
        n, kept = widest.width, widest.kept
        batch = self._settings.batch_size * self._settings.sequence_length
        if stage == "capture":
            reading = layer.weights * self._stored if self._from_disk else 0
            neurons = sum(f.count * f.share * f.width for f in layer.ffns)
            return statistics + max(reading, int(batch * (4 * neurons + 8 * layer.hidden) * 4))
        if stage == "measure":
            return statistics + (1 if self._on_cpu else 2) * 4 * n**2
        if stage == "select":
            pairs = min(WORKSPACE, self._settings.sample_size * n * self._settings.nodes) + 4 * kept * (
                n - kept
            )
            return statistics + max(pairs, 12 * kept**2 + 4 * kept * n + 24 * kept * (n - kept))
        if stage == "sensitivity":
            return statistics + _solve(widest, "lstsq")
        # Refining keeps the weights as they were, and a copy that is trained with its gradients and two moments.
        refined = (16 + self._size) * widest.weights * kept // n if self._settings.refine else 0
        return max(_solve(widest, self._settings.repair), refined)


def _solve(ffn: FFNShape, repair: str) -> int:
    """Bytes of a ridge regression."""
    moments = 16 if repair == "lstsq" else 12  # with the system, in float64 or float32
    return moments * ffn.kept**2 + 24 * ffn.kept * ffn.outputs + 4 * ffn.kept * ffn.width
