"""Structured pruning of language models by the mutual information between neurons, without retraining."""

from pruning.pipeline import Settings, prune
from pruning.report import Report

__all__ = ["Report", "Settings", "prune"]
