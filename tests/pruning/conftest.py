"""Fixtures: tiny random models, windows of random tokens, and a tokenizer."""

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tiny import FAMILIES, VOCABULARY, tiny_model, tiny_tokenizer


@pytest.fixture(params=FAMILIES)
def model(request) -> transformers.PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def llama() -> transformers.PreTrainedModel:
    return tiny_model("Llama")


@pytest.fixture(scope="session")
def windows() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (24, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
