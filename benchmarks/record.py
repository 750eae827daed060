"""Rows of results: one JSON object a line, with all that is needed to run it again."""

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

import mikernels

RESULTS = Path(__file__).parent / "results"


def row(
    benchmark: str,
    command: str,
    case: dict[str, Any],
    result: dict[str, Any],
    versions: dict[str, str] | None = None,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """A result with its conditions; `versions` are those of other packages that it depends on."""
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


def append(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)


def quantiles(seconds: list[float]) -> dict[str, float]:
    values = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    )
    return dict(zip(("min", "median", "max"), (round(float(v), 5) for v in values), strict=True))


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
