"""Tiny random models of every supported family, and a tokenizer that needs no download."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 260
CAUSAL = ("Llama", "Mistral", "Qwen2", "Qwen3")
FAMILIES = (*CAUSAL, "Bert")
NORMING = ("Gemma2", "Olmo2")
"""Families whose layers norm what the FFN gives before they add it."""
SCALING = "Granite"
"""Whose layers multiply it."""


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
    with torch.no_grad():  # larger than the usual initialisation, so that the FFNs matter
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
