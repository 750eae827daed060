"""Structured pruning of language models by the mutual information between neurons, without retraining."""

import sys
from importlib.util import find_spec
from pathlib import Path

if missing := [name for name in ("transformers", "safetensors", "tqdm") if find_spec(name) is None]:
    message = f"pruning: expected {', '.join(missing)} to be installed; run: pip install 'mikernels[prune]'"
    if Path(sys.argv[0]).stem in (
        "mi-prune",
        "mi-report",
    ):  # the command prints one line instead of a traceback
        sys.exit(message)
    raise ImportError(message)

from pruning.from_disk import prune_folder
from pruning.model.loading import load_model
from pruning.pipeline import prune
from pruning.planning.plan import Plan, plan
from pruning.report.manifest import Report
from pruning.settings import Settings
from pruning.sweeping import Swept, sweep

__all__ = ["Plan", "Report", "Settings", "Swept", "load_model", "plan", "prune", "prune_folder", "sweep"]
