"""Structured pruning of language models by the mutual information between neurons, without retraining."""

from pruning.checkpoint import load_model
from pruning.pipeline import prune
from pruning.report import Report
from pruning.settings import Settings

__all__ = ["Report", "Settings", "load_model", "prune"]
