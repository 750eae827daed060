"""Structured pruning of language models by the mutual information between neurons, without retraining."""

from pruning.model.checkpoint import load_model
from pruning.pipeline import prune
from pruning.report.manifest import Report
from pruning.settings import Settings

__all__ = ["Report", "Settings", "load_model", "prune"]
