"""What the command says of a run that ends early."""

import os
from pathlib import Path


class Saved:
    """What a run that ends with an error has already saved, for its message."""

    def __init__(self, statistics: str | None) -> None:
        self._statistics = statistics
        self._before = self._written()
        self.out: Path | None = None

    def __str__(self) -> str:
        names = [f"the statistics in {self._statistics}"] if self._written() != self._before else []
        names += [f"the pruned model in {self.out}"] if self.out is not None else []
        return f" (already saved: {' and '.join(names)})" if names else ""

    def _written(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._statistics) if self._statistics else None
        except (OSError, ValueError):
            return None
        return (status.st_ino, status.st_mtime_ns) if status is not None else None
