"""What a run will take, before it takes it: seconds, memory and disk, from the config and a short probe."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pruning.model.device import find_device
from pruning.model.precision import computing_dtype
from pruning.planning.available import free_memory
from pruning.planning.prediction import Prediction, Stage
from pruning.planning.rates import Rates, measure_rates
from pruning.planning.shapes import ModelShapes, model_shapes
from pruning.prepare import TOKENS_PER_NEURON, needed_tokens
from pruning.settings import Settings

ASSUMPTIONS = (
    "rates are measured now, on this machine, with the threads that torch has; other load makes them lower",
    "each stage waits for the one before; reading, computing and writing do not overlap",
    "tokens are spread evenly over experts",
    "reading the text, the model's writing of its own, trying it out, evaluating and saving the tokenizer are not "
    "counted",
)


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
                    f"{name}: expected {gigabytes(needed)} that are free, got {gigabytes(free)}: "
                    f"{gigabytes(needed - free)} are missing; {remedy}"
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
        ValueError: settings that do not suit the shapes of the model, as in the run. What the run finds out by running
            the model, such as layers that cannot be run one by one, is not found here.
    """
    settings = settings or Settings()
    device = find_device(device)
    shapes = model_shapes(source, settings, dtype, from_disk=from_disk, trust_remote_code=trust_remote_code)
    computing = computing_dtype(shapes.dtype, device) if dtype is None else dtype
    folder = next(p for p in (Path(out).resolve(), *Path(out).resolve().parents) if p.is_dir())
    free_disk = shutil.disk_usage(folder).free
    if rates is None:
        rates = measure_rates(settings, computing, device, folder)
        if device != "cpu":
            torch.cuda.empty_cache()  # of what was measured, so that it counts as free
    prediction = Prediction(shapes, computing, device, from_disk=from_disk, save_statistics=save_statistics)
    widest = max(
        (ffn for layer in shapes.layers for ffn in layer.ffns), key=lambda f: needed_tokens(f.kept, f.share)
    )
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
        needed_tokens=needed_tokens(widest.kept, widest.share),
        least_ratio=max(0.0, 1 - n_tokens * widest.share / TOKENS_PER_NEURON / widest.width),
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
