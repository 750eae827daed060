"""Tiny random models of every supported family, a tokenizer that needs no download, and shared assertions."""

import copy
import subprocess
import traceback
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruning.model import reload
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

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
ARCHITECTURES: dict[str, dict] = {
    "LlamaForCausalLM": _TEXT | {"intermediate_size": 40},
    "Phi3ForCausalLM": _TEXT | {"intermediate_size": 40},
    "BitNetForCausalLM": _TEXT | {"intermediate_size": 40},
    "Gemma2ForCausalLM": _TEXT | {"intermediate_size": 40, "head_dim": 8},
    "Gemma3ForCausalLM": _TEXT | {"intermediate_size": 40, "head_dim": 8, "sliding_window": 32},
    "Olmo2ForCausalLM": _TEXT | {"intermediate_size": 40},
    "GraniteForCausalLM": _TEXT | {"intermediate_size": 40, "residual_multiplier": 0.3},
    "BertModel": _TEXT | {"intermediate_size": 40},
    "AlbertModel": _TEXT | {"intermediate_size": 40, "num_hidden_layers": 3, "embedding_size": 8},
    "GPT2LMHeadModel": {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "BloomForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "MambaForCausalLM": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 8,
    },
    "LiltModel": _TEXT | {"hidden_size": 48, "intermediate_size": 64, "max_2d_position_embeddings": 64},
    "Gemma3nForCausalLM": _TEXT
    | {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "intermediate_size": [48, 48, 40, 48],
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 4,
        "laurel_rank": 8,
    },
    # Mixtures of experts.
    "MixtralForCausalLM": _TEXT
    | {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Qwen2MoeForCausalLM": _TEXT
    | {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [0],
    },
    "GptOssForCausalLM": _TEXT
    | {"intermediate_size": 24, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3ForCausalLM": _TEXT
    | _LATENT
    | {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "Llama4ForCausalLM": _TEXT
    | {
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
    },
    "GraniteMoeForCausalLM": _TEXT
    | {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "JetMoeForCausalLM": {
        **{name: value for name, value in _TEXT.items() if name != "num_attention_heads"},
        "kv_channels": 8,
        "intermediate_size": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "DbrxForCausalLM": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
        "attn_config": {"rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4},
    },
    "LongcatFlashForCausalLM": {
        **{name: value for name, value in (_TEXT | _LATENT).items() if name != "num_hidden_layers"},
        "num_layers": 1,
        "head_dim": 4,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    # Encoder-decoders, images and audio.
    "T5ForConditionalGeneration": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": _SEQ2SEQ | {"max_position_embeddings": 64},
    "WhisperForConditionalGeneration": _SEQ2SEQ
    | {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 64, "num_hidden_layers": 2},
    "ViTModel": _VISION,
    "Dinov2Model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    "CLIPModel": {
        "text_config": _TEXT | {"intermediate_size": 48},
        "vision_config": _VISION,
        "projection_dim": 16,
    },
}
"""Config entries of tiny models beyond what `tiny_model` makes, by class."""


def tiny_config(class_name: str, **entries) -> transformers.PretrainedConfig:
    config: transformers.PretrainedConfig = getattr(transformers, class_name).config_class(
        **(ARCHITECTURES[class_name] | entries)
    )
    return config


def tiny(class_name: str, *, seed: int = 0, **entries) -> transformers.PreTrainedModel:
    """A model of one of the `ARCHITECTURES`, with weights large enough that FFNs and routers matter."""
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(tiny_config(class_name, **entries)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.nan_to_num() + 0.1 * torch.randn_like(parameter))
    return model


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


def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `reload_difference` load the checkpoint in this process: a fresh one, which `test_cli` starts, takes
    seconds."""

    def run(command: list[str], **_options) -> SimpleNamespace:
        assert command[1:3] == ["-m", "pruning.model.reload"]
        try:
            reload._run(*command[3:])
        except Exception:
            return SimpleNamespace(returncode=1, stderr=traceback.format_exc().encode())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reload, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Bit for bit, including NaN."""
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
