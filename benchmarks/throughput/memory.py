"""Peak memory of one call, in a fresh process, on Linux.

python -m benchmarks.throughput.memory CASE VARIANT    # prints bytes
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.throughput.cases import Case
from benchmarks.throughput.variants import VARIANTS


def peak_bytes(case: Case, variant: str) -> int:
    """Peak memory of a call beyond its inputs, result included."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(asdict(case)), variant],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def main() -> None:
    case, variant = Case(**json.loads(sys.argv[1])), VARIANTS[sys.argv[2]]
    small = replace(case, N=8, M=64)
    own = variant.case(case)
    variant.run(
        torch.randn(small.M, small.N, device=case.device), variant.case(small)
    )  # what loads on first use
    x = torch.randn(case.M, case.N, device=case.device)  # values do not matter, and `samples` has temporaries
    before = _peak(case.device)
    variant.run(x, own)
    print(_peak(case.device) - before)


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss, which starts at the peak of the parent process where that was larger.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
