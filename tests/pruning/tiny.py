"""Tiny random models of every supported family, a tokenizer that needs no download, and shared assertions."""

import copy

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruning.model.ffn import find_ffns
from pruning.observe.capture import Statistics
from pruning.report.manifest import Report

VOCABULARY = 260
CAUSAL = ("Llama", "Mistral", "Qwen2", "Qwen3")
FAMILIES = (*CAUSAL, "Bert")
NORMING = ("Gemma2", "Olmo2")
"""Families whose layers normalize the output of the FFN before adding it."""
SCALING = "Granite"
"""A family whose layers multiply the output of the FFN by a constant before adding it."""


def tiny_model(family: str, *, width: int = 40, seed: int = 0, **config) -> transformers.PreTrainedModel:
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "hidden_act": "gelu" if family == "Bert" else "silu",
    }
    if family != "Bert":
        common |= {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    if family == SCALING:
        common |= {"residual_multiplier": 0.3}
    torch.manual_seed(seed)
    configuration = getattr(transformers, f"{family}Config")(**(common | config))
    name = "BertModel" if family == "Bert" else f"{family}ForCausalLM"
    model = getattr(transformers, name)(configuration).eval()
    with torch.no_grad():  # larger than the usual initialization, so that the FFNs matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
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


@torch.inference_mode()
def outputs(model: transformers.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids)[0]


def symmetric(n: int, seed: int) -> torch.Tensor:
    """A random symmetric matrix `[n, n]` with values in [0, 1]."""
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    return (a + a.T) / 2


def statistics_of(z: torch.Tensor) -> Statistics:
    """Of activations `[T, N]`, by other means than `Recorder`."""
    return Statistics("layer", z, len(z), z.double().mean(0), z.T.cov(correction=0))


def masked(model: transformers.PreTrainedModel, report: Report) -> transformers.PreTrainedModel:
    """A copy of the dense model in which all neurons that were dropped are zero."""
    model = copy.deepcopy(model)
    ffns = {ffn.name: ffn for ffn in find_ffns(model)}
    for layer in report.layers:
        ffn = ffns[layer.name]
        mask = torch.zeros(ffn.width)
        mask[layer.kept] = 1
        ffn.output.owners[0].register_forward_pre_hook(lambda _module, args, mask=mask: (args[0] * mask,))
    return model


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Bit for bit, including NaN."""
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
