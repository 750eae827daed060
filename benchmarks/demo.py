"""`make demo` as a row of results: quality, speed, time of each stage, and peak memory.

python -m benchmarks.demo
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record import RESULTS, append, row

OUT = Path("build/smollm2-pruned")


def main() -> None:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pruning.demo", f"--out={OUT}"], check=True)
    seconds = time.perf_counter() - start
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
    append([row("demo", "python -m benchmarks.demo", case, result)], RESULTS / "cpu.jsonl")


if __name__ == "__main__":
    main()
