"""Tiny random models of every supported family."""

import torch
import transformers

VOCABULARY = 260
CAUSAL = ("Llama", "Mistral", "Qwen2", "Qwen3")
FAMILIES = (*CAUSAL, "Bert")


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
    torch.manual_seed(seed)
    configuration = getattr(transformers, f"{family}Config")(**(common | config))
    name = "BertModel" if family == "Bert" else f"{family}ForCausalLM"
    model = getattr(transformers, name)(configuration).eval()
    with torch.no_grad():  # larger than the usual initialisation, so that the FFNs matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.inference_mode()
def outputs(model: transformers.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids)[0]
