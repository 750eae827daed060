"""What a run will take, before it takes it: seconds, memory and disk, from the config and a short probe."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pruning.model.device import find_device
from pruning.model.precision import computing_dtype
from pruning.observe.calibration import COMPARISON_TOKENS
from pruning.planning import work
from pruning.planning.available import free_memory, own_memory
from pruning.planning.rates import Rates, measure_rates
from pruning.planning.shapes import ModelShapes, model_shapes
from pruning.planning.work import FFNShape, LayerShape, Work
from pruning.prepare import TOKENS_PER_NEURON, measures_all_first
from pruning.report.table import table
from pruning.settings import Settings

WORKSPACE = 2**30
"""Bytes that the mutual information of all pairs may use (`mikernels.memory`)."""
ASSUMPTIONS = (
    "rates are measured now, on this machine, with the threads that torch has; other load makes them lower",
    "each stage waits for the one before; reading, computing and writing do not overlap",
    "tokens are spread evenly over experts",
    "reading the text, the model's writing of its own, trying it out, evaluating and saving the tokenizer are not "
    "counted",
)


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


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        shapes: of the model and of the pruned one.
        device, computing: where, and in which dtype.
        from_disk: whether one layer is in memory at a time.
        rates: measured on this machine.
        stages: in their order.
        free_memory: of the device, bytes.
        disk: bytes that the run writes and has at a time, beside the model.
        free_disk: bytes.
        n_tokens: of the calibration.
        needed_tokens: with fewer, least squares fits noise at this ratio.
        least_ratio: from which `n_tokens` are enough.
    """

    shapes: ModelShapes
    device: str
    computing: torch.dtype
    from_disk: bool
    rates: Rates
    stages: tuple[Stage, ...]
    free_memory: int
    disk: int
    free_disk: int
    n_tokens: int
    needed_tokens: int
    least_ratio: float

    @property
    def memory(self) -> int:
        """The most that the process has on the device at a time, bytes."""
        return max(stage.memory for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def check(self) -> None:
        """Raise unless the run fits.

        Raises:
            ValueError: with what is missing.
        """
        advice = (
            "use fewer --calibration-tokens or a --memory-budget" if self.from_disk else "use --from-disk"
        )
        for name, needed, free, remedy in (
            ("memory", self.memory, self.free_memory, advice),
            ("disk", self.disk, self.free_disk, "make room"),
        ):
            if needed > free:
                raise ValueError(
                    f"{name}: expected {_gb(needed)} that are free, got {_gb(free)}: {_gb(needed - free)} are missing; "
                    f"{remedy}"
                )

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        entry = asdict(self) | {"memory": self.memory, "seconds": self.seconds, "assumptions": ASSUMPTIONS}
        entry["stages"] = [
            stage._asdict() | {"operations": stage.operations._asdict()} for stage in self.stages
        ]
        return entry


def plan(
    source: str | Path,
    *,
    settings: Settings | None = None,
    from_disk: bool = True,
    save_statistics: bool = False,
    out: str | Path = ".",
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    rates: Rates | None = None,
) -> Plan:
    """Predict what pruning the model in the folder `source` takes. Only its config is needed.

    Args:
        settings, from_disk, dtype, device: of the run.
        save_statistics: whether the run saves statistics, for which it measures all layers before it prunes one.
        out: the folder that the result will be written to, or one on the same disk.
        rates: of the machine; measured in a few seconds by default.

    Raises:
        FileNotFoundError: no config.
        ValueError: see `pruning.prune_folder`.
    """
    settings = settings or Settings()
    device = find_device(device)
    shapes = model_shapes(source, settings, dtype, trust_remote_code=trust_remote_code)
    computing = computing_dtype(shapes.dtype, device) if dtype is None else dtype
    folder = next(p for p in (Path(out).resolve(), *Path(out).resolve().parents) if p.is_dir())
    free_disk = shutil.disk_usage(folder).free
    if rates is None:
        rates = measure_rates(settings, computing, device, folder)
        if device != "cpu":
            torch.cuda.empty_cache()  # of what was measured, so that it counts as free
    prediction = _Prediction(shapes, computing, device, from_disk=from_disk, save_statistics=save_statistics)
    widest = max((ffn for layer in shapes.layers for ffn in layer.ffns), key=lambda ffn: ffn.kept / ffn.share)
    n_tokens = settings.calibration_tokens
    return Plan(
        shapes=shapes,
        device=device,
        computing=computing,
        from_disk=from_disk,
        rates=rates,
        stages=tuple(prediction.stages(rates)),
        free_memory=free_memory(device),
        disk=prediction.disk(),
        free_disk=free_disk,
        n_tokens=n_tokens,
        needed_tokens=int(TOKENS_PER_NEURON * widest.kept / widest.share),
        least_ratio=max(0.0, 1 - n_tokens * widest.share / TOKENS_PER_NEURON / widest.width),
    )


class _Prediction:
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
        if not self._from_disk:
            values = self._shapes.bytes[0] // self._stored
            base += values * (self._size + self._stored * (self._size != self._stored))
        opening = self._shapes.body // self._stored * (self._size + self._stored) if self._from_disk else 0
        peaks = {"capture": base + opening + self._within(self._hidden(layers[0]))}
        for name in stages:
            most = max(self._held(layer) + self._beyond(name, layer) for layer in layers)
            peaks[name] = max(peaks.get(name, 0), base + most)
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
    targets = ffn.width - ffn.kept if repair == "lstsq" else ffn.outputs
    return 12 * ffn.kept**2 + 24 * ffn.kept * targets + 4 * ffn.kept * ffn.width


def plan_text(found: Plan) -> str:
    """The plan, for people."""
    shapes, settings = found.shapes, found.shapes.settings
    rows = [
        (stage.name, _duration(stage.seconds), _gb(stage.disk_bytes), _gb(stage.memory))
        for stage in found.stages
    ]
    rows.append(
        (
            "whole run",
            _duration(found.seconds),
            _gb(sum(s.disk_bytes for s in found.stages)),
            _gb(found.memory),
        )
    )
    how = "one layer at a time from disk" if found.from_disk else "with the whole model in memory"
    lines = [
        f"{shapes.name}, {shapes.parameters[0] / 1e9:,.2f} billion parameters in "
        f"{str(shapes.dtype).removeprefix('torch.')} ({_gb(shapes.bytes[0])}), computed in "
        f"{str(found.computing).removeprefix('torch.')} on {found.device}, {how}",
        f"Result at ratio {settings.ratio:.4g}: {shapes.parameters[1] / 1e9:,.2f} billion parameters, "
        f"{_gb(shapes.bytes[1])}; {len(shapes.files)} files",
        "",
        table(rows, ("predicted", "time", "disk traffic", "memory")),
        "",
        f"Free: {_gb(found.free_memory)} of memory, {_gb(found.free_disk)} of disk, of which the run needs "
        f"{_gb(found.disk)}",
    ]
    enough = "enough" if found.n_tokens >= found.needed_tokens else "too few"
    lines.append(
        f"Calibration: {found.n_tokens:,} tokens are {enough}; this ratio needs {found.needed_tokens:,}, and "
        f"{found.n_tokens:,} are enough from ratio {found.least_ratio:.2f}"
    )
    rates = found.rates
    lines.append(
        f"Measured: products {_rate(rates.product)} ({_rate(rates.product32)} in float32, {_rate(rates.product64)} in "
        f"float64), Cholesky {_rate(rates.factor32)} and {_rate(rates.factor64)}, memory {_gb(int(rates.stream))}/s, "
        f"pairs {1 / rates.pair:,.0f}/s, disk {_gb(int(rates.read))}/s read and {_gb(int(rates.write))}/s written"
    )
    return "\n".join([*lines, *(f"Assumed: {assumption}" for assumption in ASSUMPTIONS)])


def _rate(flop: float) -> str:
    return f"{flop / 1e9:,.0f} GFLOP/s"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
