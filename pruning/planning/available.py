"""How much memory there is, on this machine and for this process."""

import os
from pathlib import Path

import torch


def own_memory() -> int:
    """Bytes that this process has resident; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: str) -> int:
    """Bytes that this process may have on a device, with what it has already."""
    if device != "cpu":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable")))
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, StopIteration):  # no such limit
        pass
    if not limits:
        limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(limits) + own_memory()
