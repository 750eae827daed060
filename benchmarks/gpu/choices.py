"""What each choice of the kernels is worth: the same launch with one choice at a time undone, in turn.

Also the rates of plain 8-bit products in Triton by tile size, and the saving of the symmetric kernel.
"""

import statistics
import time
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.record import quantiles, timed
from benchmarks.speed.samples import gated_activations
from mikernels import mutual_information, transforms
from mikernels.options import Precision
from mikernels.triton_impl import chip_of, kde, launch
from mikernels.triton_impl.adaptive_kernels import counts_kernel
from mikernels.triton_impl.configs import Config, configs, constants
from mikernels.triton_impl.grid import grid_kernel

NODES = 16
EXACT_ROUTINE = "interpreter"
"""The chip for which `mikernels.triton_impl.log2` compiles to the routine of `tl.log2`."""


class Choice(NamedTuple):
    """A launch of `grid`; None for what is shipped."""

    name: str
    config: Config | None = None
    group: int | None = None
    log_chip: str | None = None
    upper: bool = True


CHOICES = [
    Choice("as shipped"),
    Choice("logarithm by the routine of tl.log2", log_chip=EXACT_ROUTINE),
    Choice("blocks of 128 bytes of K", Config(128, 256, 128, 8, 3)),
    Choice("two programs on a multiprocessor", Config(128, 128, 128, 8, 3)),
    Choice("groups of 8 rows of tiles", group=8),
    Choice("all tiles, not only the upper triangle", upper=False),
]
RATE_CONFIGS = [
    Config(128, 256, 256, 8, 2),
    Config(128, 256, 128, 8, 3),
    Config(256, 128, 256, 8, 2),
    Config(128, 128, 256, 8, 3),
    Config(128, 128, 128, 8, 3),
    Config(128, 128, 128, 4, 3),
]
DRY_CONFIG = Config(128, 128, 128, 4, 1)


def run_grid(choice: Choice, a: Tensor, out: Tensor, precision: Precision) -> None:
    """The kernel of `grid` on features `a [n * 16, K]`."""
    n = len(a) // NODES
    chip = chip_of(a.device)

    def chosen_constants(config: Config, chip: str, precision: Precision) -> dict[str, Any]:
        return constants(config, chip, precision) | ({"GROUP": choice.group} if choice.group else {})

    chosen = [choice.config] if choice.config else configs("grid_kernel", chip, precision)
    with (
        patch.object(launch, "configs", lambda *_: chosen),
        patch.object(launch, "constants", chosen_constants),
    ):
        launch.Launcher(chip, precision, autotune=False).run_tiles(
            *(grid_kernel, a, a, out, n, n, a.shape[1], NODES**2 / (a.shape[1] * 2.0**14)),
            adds=False,
            UPPER=choice.upper,
            S=NODES,
            W=NODES,
            INTEGERS=precision == "int8",
            CHIP=choice.log_chip or chip,
        )


def run_product(config: Config, a: Tensor, out: Tensor) -> None:
    """`a a^T` of int8 `a [n, K]`, the kernel of the counts of `adaptive`."""
    chip = chip_of(a.device)
    with patch.object(launch, "configs", lambda *_: [config]):
        launch.Launcher(chip, "int8", autotune=False).run_tiles(
            *(counts_kernel, a, a, out, len(a), len(a), a.shape[1]), adds=False, UPPER=False
        )


def in_turn(calls: dict[str, Any], device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one after another `repeats` times, so that a drift of the clock affects all alike."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call, device)[1])
    return seconds


def compare_choices(device: str, dry: bool, deadline: float) -> list[dict[str, Any]]:
    """Rows of `grid` by choice, of whole calls by choice, and of plain products by tile size."""
    repeats, n, m = (1, 8, 128) if dry else (7, 4096, 4096)
    tile_sizes_of_hopper = chip_of(torch.device(device)) in ("sm_90", "interpreter")
    operand = torch.randint(0, 128, (n * NODES, m), dtype=torch.int8, device=device)
    sums = torch.empty(n, n, device=device)
    rows = []
    for precision in ("int8", "fp16"):
        a = operand if precision == "int8" else operand.half() / 128
        chosen = [c for c in CHOICES if c.config is None or (precision == "int8" and tile_sizes_of_hopper)]
        calls = {c.name: lambda c=c, a=a, p=precision: run_grid(c, a, sums, p) for c in chosen}
        rows += _rows("choice", in_turn(calls, device, repeats), {"precision": precision, "N": n, "M": m})
        if time.monotonic() > deadline:
            return rows
    x = gated_activations(*((16, 4) if dry else (1024, 11008)), 0).to(device)
    whole = {
        "as shipped": lambda: mutual_information(x, estimator="kde", impl="triton"),
        "kde takes a logarithm for each sample": lambda: _patched(
            (kde, "MAX_SAMPLES_PER_LOG", 1), lambda: mutual_information(x, estimator="kde", impl="triton")
        ),
    }
    rows += _rows(
        "choice", in_turn(whole, device, 1 if dry else 2), {"whole call": "kde", "shape": list(x.shape)}
    )
    rank = {
        "as shipped": lambda: transforms.transform_samples(x, "rank", seed=0),
        "chunks of the size of a CPU's cache": lambda: _patched(
            (transforms, "GPU_CHUNK_BYTES", transforms.CPU_CHUNK_BYTES),
            lambda: transforms.transform_samples(x, "rank", seed=0),
        ),
    }
    rows += _rows("choice", in_turn(rank, device, repeats), {"whole call": "ranks", "shape": list(x.shape)})
    if time.monotonic() > deadline:
        return rows
    size = 128 if dry else 8192
    a = torch.randint(0, 128, (size, size), dtype=torch.int8, device=device)
    out = torch.empty(size, size, dtype=torch.int32, device=device)
    tiles = RATE_CONFIGS if tile_sizes_of_hopper else configs("counts_kernel", chip_of(a.device), "int8")
    tiles = [DRY_CONFIG] if dry else tiles
    products = {"x".join(map(str, c)): lambda c=c: run_product(c, a, out) for c in tiles}
    products["torch._int_mm"] = lambda: torch._int_mm(a, a.t())
    found = _rows("int8-rate", in_turn(products, device, repeats), {"size": size})
    expected = torch._int_mm(a, a.t())
    for row, config in zip(found, [*tiles, None], strict=True):
        row["operations_per_second"] = 2 * size**3 / row["seconds"]["median"]
        if config is not None:
            run_product(config, a, out)
            row["ok"] = torch.equal(out, expected)
    return rows + found


def _patched(change: tuple[Any, str, Any], call: Any) -> Any:
    with patch.object(*change):
        return call()


def _rows(part: str, seconds: dict[str, list[float]], case: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each choice, with its time as a multiple of the first one's."""
    first = statistics.median(next(iter(seconds.values())))
    rows = []
    for name, found in seconds.items():
        ratio = statistics.median(found) / first
        print(f"  {name:44}{statistics.median(found) * 1e3:10.3f} ms  {ratio:6.3f}", flush=True)
        described = {"choice": name, **case}
        rows.append(
            {"part": part, "case": described, "seconds": quantiles(found), "ratio": ratio, "ok": True}
        )
    return rows
