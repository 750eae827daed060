"""Fixtures: tiny random models, windows of random tokens, and a tokenizer that needs no download."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny import FAMILIES, VOCABULARY, tiny_model


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
    """Bytes as tokens."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
