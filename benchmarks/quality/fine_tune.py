"""Fine-tuning of an encoder with a new classification head, small enough for a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.quality.glue_tasks import Example, encode
from pruning.model.ffn import find_ffns


@dataclass(frozen=True)
class Training:
    """How a model is fine-tuned; the fields are stored in rows."""

    examples: int = 8000  # at most
    epochs: int = 3
    learning_rate: float = 1e-4
    frozen_layers: int = 0  # the lowest layers, which stay as they are, as the embeddings do
    batch_size: int = 32
    seed: int = 0


def fine_tune(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    training: Training,
    device: str = "cpu",
) -> PreTrainedModel:
    """The model in the folder `path` with a head for two classes, trained by AdamW.

    The learning rate rises over the first tenth of the steps and then falls to 0, both linearly. The seed sets the
    new head, dropout, and which examples are seen in which order.
    """
    torch.manual_seed(training.seed)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype=torch.float32)
    model.to(device)
    freeze_lower(model, training.frozen_layers)
    order = torch.randperm(len(examples))[: training.examples]
    chosen = encode(tokenizer, [examples[i] for i in order])
    lengths = [len(inputs["input_ids"]) for inputs in chosen]
    loader = DataLoader(
        chosen,
        training.batch_size,
        sampler=LengthGroupedSampler(training.batch_size, lengths=lengths),
        collate_fn=DataCollatorWithPadding(tokenizer),
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=0.01)
    n_steps = training.epochs * len(loader)
    schedule = get_linear_schedule_with_warmup(optimizer, n_steps // 10, n_steps)
    model.train()
    for _ in range(training.epochs):
        for batch in loader:
            model(**batch.to(device)).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval().requires_grad_(True)


def freeze_lower(model: PreTrainedModel, n_layers: int) -> None:
    """Leave only the layers above the first `n_layers`, the pooler and the head to be trained."""
    body = model.base_model
    body.requires_grad_(False)
    for module in (*(ffn.layer for ffn in find_ffns(model)[n_layers:]), getattr(body, "pooler", None)):
        if module is not None:
            module.requires_grad_(True)
