"""Three tasks of GLUE: their files, their sentences as inputs of a model, and how its predictions are judged.

Source: Wang, Singh, Michael, Hill, Levy, Bowman, GLUE, arXiv 1804.07461.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.device import input_device
from pruning.model.evaluation_mode import evaluation_mode
from pruning.observe.batches import Inputs

MAX_LENGTH = 128
"""Tokens, behind which sentences are cut."""
BATCH_SIZE = 64
"""Sentences of similar lengths in a batch, for evaluation and calibration."""


class Example(NamedTuple):
    texts: tuple[str, ...]  # a sentence, or a pair of them
    label: int


@dataclass(frozen=True)
class GlueTask:
    """Two classes of sentences, or of pairs of them, in tab-separated files without quoting."""

    name: str  # and folder
    measure: str  # "accuracy" or "Matthews correlation"
    header: tuple[str, ...] | None  # first line of a file
    n_fields: int
    texts: tuple[int, ...]  # which fields hold them
    label: int  # which field holds it
    labels: tuple[str, str]
    dev: str  # file with the official development set

    def read(self, glue: Path, part: str) -> list[Example]:
        """The examples of `part`, `"train"` or `"dev"`, below the folder `glue`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another header, another number of fields in a line, or another label.
        """
        path = glue / self.name / {"train": "train.tsv", "dev": self.dev}[part]
        if not path.is_file():
            raise FileNotFoundError(
                f"data: expected the {part} examples of {self.name} in {path}, found no such file; "
                f"get train.tsv and {self.dev} of GLUE"
            )
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        first = 1
        if self.header is not None:
            if not lines or tuple(lines[0]) != self.header:
                raise ValueError(f"{path}:1: expected the header {self.header}, got {lines[:1]}")
            first, lines = 2, lines[1:]
        return [self._example(path, number, fields) for number, fields in enumerate(lines, first)]

    def _example(self, path: Path, number: int, fields: Sequence[str]) -> Example:
        if len(fields) != self.n_fields:
            raise ValueError(f"{path}:{number}: expected {self.n_fields} fields, got {len(fields)}")
        if fields[self.label] not in self.labels:
            raise ValueError(
                f"{path}:{number}: expected the label {' or '.join(self.labels)}, got {fields[self.label]!r}"
            )
        return Example(tuple(fields[i] for i in self.texts), self.labels.index(fields[self.label]))

    def score(self, predictions: Tensor, labels: Tensor) -> float:
        """Accuracy, or Matthews correlation, of predictions `[n]`."""
        if self.measure == "accuracy":
            return float((predictions == labels).double().mean())
        return matthews(predictions.numpy(), labels.numpy())


SENTENCE = ("sentence", "label")
PAIR = ("index", "sentence1", "sentence2", "label")
TASKS = {
    task.name: task
    for task in (
        GlueTask("SST-2", "accuracy", SENTENCE, 2, (0,), 1, ("0", "1"), "test.tsv"),
        GlueTask("CoLA", "Matthews correlation", None, 4, (3,), 1, ("0", "1"), "dev.tsv"),
        GlueTask("RTE", "accuracy", PAIR, 4, (1, 2), 3, ("entailment", "not_entailment"), "dev.tsv"),
    )
}
"""Of SST-2, the file `dev.tsv` holds a part of the training set, and `test.tsv` the official development set."""


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation of two binary vectors `[n]`: their Pearson correlation, or 0 if one is constant."""
    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The inputs of a model for each example, with its label as `labels`."""
    texts = [list(column) for column in zip(*(e.texts for e in examples), strict=True)]
    inputs = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)
    return [
        {name: values[i] for name, values in inputs.items()} | {"labels": example.label}
        for i, example in enumerate(examples)
    ]


def batches(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Padded batches of examples, shortest first, so that there is little padding."""
    collate = DataCollatorWithPadding(tokenizer)
    ordered = sorted(encoded, key=lambda inputs: len(inputs["input_ids"]))
    return [
        dict(collate(ordered[start : start + BATCH_SIZE])) for start in range(0, len(ordered), BATCH_SIZE)
    ]


@torch.inference_mode()
def predict(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """The more probable class of each example `[n]`, on the CPU, in the order of the batches."""
    device = input_device(model)
    with evaluation_mode(model):
        placed = ({name: part.to(device) for name, part in batch.items()} for batch in batches)
        return torch.cat([model(**batch).logits.argmax(1).cpu() for batch in placed])


def calibration(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], n_tokens: int, seed: int
) -> Inputs:
    """Batches of examples without labels, drawn until they have `n_tokens`; all examples if they have fewer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)[: n_tokens // 2]  # each has at least 2 tokens
    drawn = encode(tokenizer, [examples[i] for i in order])
    lengths = np.cumsum([len(inputs["input_ids"]) for inputs in drawn])
    count = int(np.searchsorted(lengths, n_tokens)) + 1
    unlabeled = [{n: v for n, v in inputs.items() if n != "labels"} for inputs in drawn[:count]]
    return Inputs(batches(tokenizer, unlabeled), f"{len(unlabeled)} examples of the training set")
