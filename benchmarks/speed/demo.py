"""Record `make demo`: quality, speed, time of each stage, and peak memory.

python -m benchmarks.speed.demo
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.record import RESULTS, append, row, timed

OUT = Path("build/smollm2-pruned")


def main() -> None:
    _, seconds = timed(
        lambda: subprocess.run([sys.executable, "-m", "pruning.demo", f"--out={OUT}"], check=True)
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    manifest = json.loads((OUT / "mi_prune.json").read_text(encoding="utf-8"))
    case = manifest["settings"] | {"model": Path(manifest["model"]).name}
    result = {
        "evaluation": manifest["evaluation"],
        "neurons": manifest["neurons"],
        "seconds": round(seconds, 1),
        "seconds_of_stages": manifest["seconds"],
        "peak_memory_mb": round(peak / 1e6),
    }
    append([row("demo", "python -m benchmarks.speed.demo", case, result)], RESULTS / "cpu.jsonl")


if __name__ == "__main__":
    main()
