"""What every benchmark shares: its command line, its clock, and its rows of results (one JSON object per line)."""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
import transformers

import mikernels

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
T = TypeVar("T")


def argument_parser(module: str, description: str, rows: str | None = None) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`; with the name of a file of rows it has the options `--seed` and `--out`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if rows is not None:
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument(
            "--out", type=Path, default=RESULTS / rows, help=f"append rows here (default: results/{rows})"
        )
    return parser


def command(module: str, *arguments: str, **options: object) -> str:
    """The shell command that runs a module; options that are None or False are left out, lists are spread."""
    words = ["python", "-m", module, *arguments]
    for name, value in options.items():
        if value is None or value is False:
            continue
        values = [] if value is True else value if isinstance(value, list | tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def timed(call: Callable[[], T], device: str = "cpu") -> tuple[T, float]:
    """The value of a call and its wall-clock seconds, with the device idle before and after."""
    synchronize(device)
    start = time.perf_counter()
    value = call()
    synchronize(device)
    return value, time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    found = {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}
    return {name: round(value, 5) for name, value in found.items()}


def row(
    benchmark: str,
    command: str,
    case: dict[str, Any],
    result: dict[str, Any],
    versions: dict[str, str] | None = None,
    *,
    device: str = "cpu",
) -> Row:
    """A result with everything needed to reproduce it; `versions` are those of other packages involved."""
    return {
        "benchmark": benchmark,
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "--", ":/", ":!results") else ""),
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()}
        | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "versions": {
            "mikernels": mikernels.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        }
        | (versions or {}),
        "case": case,
        "result": result,
    }


def on_device(row: Row, device: str) -> bool:
    """Whether a row was measured on this kind of device, `"cpu"` or `"cuda"`."""
    return ("gpu" in row["machine"]) == (device == "cuda")


def append(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)


def load(path: Path) -> list[Row]:
    """All rows in the order in which they were stored; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip()
