"""Peak memory of one call in a fresh process, on Linux.

python -m benchmarks.speed.memory CASE VARIANT [OPTIONS]    # prints bytes
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.speed.cases import Case
from benchmarks.speed.variants import find


def peak_bytes(case: Case, variant: str, **options: object) -> int:
    """Peak memory of a call beyond its inputs, with the result; variants of mikernels take options."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(asdict(case)), variant, json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def main() -> None:
    case, variant, options = Case(**json.loads(sys.argv[1])), find(sys.argv[2]), json.loads(sys.argv[3])
    warm_up = replace(case, N=8, M=64)  # loads what the first call loads
    variant.run(torch.randn(warm_up.M, warm_up.N, device=case.device), variant.case(warm_up), **options)
    x = torch.randn(case.M, case.N, device=case.device)  # not `samples`, which allocates temporaries
    if case.zeros:
        x.clamp_(min=0)
    before = _peak(case.device)
    variant.run(x, variant.case(case), **options)
    print(_peak(case.device) - before)


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss, which starts at the peak of the parent process if that was larger.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
