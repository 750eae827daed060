"""A tiny random model of every architecture of the installed transformers.

`cases()` derives a configuration of each class from its defaults: entries that are known by name (`SIZES`) are set to
small numbers, in sub-configurations too, and `overrides.py` has what single types of models need. Nothing here knows
how models are pruned.
"""

import copy
import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from images import IMAGES
from inputs import LAST_WORD, default_inputs, image_inputs
from overrides import ALIASES, CLASSES, OTHER_CLASSES, OVERRIDES, UNBUILT, VARIANTS

VOCABULARY = 260

MAPPINGS = (
    "CAUSAL_LM",
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "TEXT_ENCODING",
    "IMAGE_TEXT_TO_TEXT",
    "SPEECH_SEQ_2_SEQ",
)
"""The Auto classes whose every class has a case: all text classes, vision-language models and speech models."""

WIDTHS = ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner")
_BY_SIZE: dict[int, str] = {
    # Residual streams.
    32: "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size word_embed_proj_dim attention_hidden_size "
    "out_hidden_size projection_dim embedding_dim hidden_size_global text_hidden_size encoder_hidden_size "
    "decoder_hidden_size vision_hidden_size pooler_hidden_size lru_width input_embedding_size output_embedding_size "
    "output_dim proj_dim backbone_hidden_size cross_hidden_size cross_attention_hidden_size audio_hidden_size "
    "image_text_hidden_size mlp_hidden_size d_latents vision_output_dim moe_hidden_size patch_embed_hidden_size projector_hidden_size num_filters downsample_hidden_size upsample_initial_channel "
    "subsampling_conv_channels conv_channels nemo_conv_channels base_channels latent_channels output_channels",
    # Widths of FFNs: each entry has its own, so that one cannot be mistaken for another.
    24: "moe_intermediate_size expert_ffn_hidden_size",
    40: "shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size "
    "shared_experts_intermediate_size share_expert_dim",
    44: "intermediate_size_mlp dense_intermediate_size",
    48: "intermediate_size ffn_dim encoder_ffn_dim d_ff dim_ff dff d_inner feed_forward_size hidden_dim mlp_dim "
    "ffn_hidden_size speech_encoder_intermediate_size t2u_encoder_ffn_dim decoder_intermediate_size",
    52: "decoder_ffn_dim t2u_decoder_ffn_dim",
    # Depth.
    1: "n_group topk_group num_expert_group",
    2: "linear_num_key_heads num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth layers "
    "num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers speech_encoder_layers t2u_encoder_layers "
    "t2u_decoder_layers conf_num_hidden_layers num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k "
    "num_key_value_heads swa_num_key_value_heads num_kv_heads encoder_num_key_value_heads index_n_heads resampler_depth "
    "decoder_num_key_value_heads cross_num_key_value_heads type_vocab_size max_window_layers num_self_attends_per_block "
    "resampler_n_heads resampler_heads aligner_num_add_layers decoder_num_layers",
    # Heads and experts.
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads encoder_num_attention_heads decoder_num_attention_heads "
    "speech_encoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads conf_num_attention_heads "
    "swa_num_attention_heads num_sliding_attention_heads cross_num_attention_heads num_experts n_routed_experts "
    "num_local_experts moe_num_experts qk_rope_head_dim linear_num_value_heads rotary_dim num_self_attention_heads "
    "num_cross_attention_heads hidden_size_per_layer_input patch_size linear_num_heads num_mem_heads",
    # Heads are 8 wide.
    8: "head_dim d_kv kv_channels qk_nope_head_dim v_head_dim attention_head_size attention_head_dim swa_head_dim "
    "global_head_dim index_head_dim linear_key_head_dim linear_value_head_dim dim_head d_head resampler_head_dim "
    "cross_head_dim linear_head_dim num_mel_bins mm_tokens_per_image resampler_n_latents resampler_num_latents "
    "num_query_tokens gated_norm_rank laurel_rank num_query_groups conv_kernel_size_ mamba_d_state ssm_state_size "
    "state_size mamba_head_dim mamba_d_head mamba_headdim mamba_dt_rank time_step_rank image_seq_length "
    "num_image_tokens d_rel hc_lowrank",
    12: "qk_head_dim",
    16: "q_lora_rank kv_lora_rank o_lora_rank window_size image_size index_topk_ chunk_size mamba_chunk_size",
    # Positions and windows; 8 is less than the length of the inputs, so that a window matters.
    64: "max_position_embeddings n_positions n_ctx max_seq_len index_topk max_source_positions max_target_positions "
    "model_max_length mem_len canvas_length rel_extent max_2d_position_embeddings max_speech_positions "
    "max_text_positions num_position_embeddings max_encoder_position_embeddings max_decoder_position_embeddings",
    9: "sliding_window",
    3: "num_channels in_channels out_channels",
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size src_vocab_size tgt_vocab_size "
    "t2u_vocab_size audio_vocab_size char_vocab_size unit_hifi_gan_vocab_size entity_vocab_size "
    "pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab codebook_vocab_size unpadded_vocab_size",
}
SIZES = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
TOWERS = {"vision": 56, "audio": 60, "speech": 60, "encoder": 64}
"""Widths of the FFNs of towers: sub-configurations with such a name."""


@dataclass(frozen=True)
class Case:
    """One architecture. The class and its configuration are made when they are asked for.

    Attributes:
        name: unique: of the class, with what is special behind it where several cases share a class.
        class_name: in transformers.
        entries: of the configuration, beyond what its type needs.
        alias: the type of model, where its configuration is not the class's own.
        with_image: whether the inputs of a vision-language model hold images, or are text alone.
    """

    name: str
    class_name: str
    entries: Mapping[str, Any] = field(default_factory=dict)
    alias: str | None = None
    with_image: bool = False

    @property
    def class_(self) -> type[PreTrainedModel]:
        return getattr(transformers, self.class_name)

    @functools.cached_property
    def config(self) -> PretrainedConfig:
        """Tiny; `build` takes a copy."""
        config_class = CONFIG_MAPPING[self.alias] if self.alias else self.class_.config_class
        padded = {"pad_token_id": 0} if self.class_name.endswith("SequenceClassification") else {}
        return tiny_config(config_class, **padded, **CLASSES.get(self.class_name, {}), **self.entries)

    def build(self) -> PreTrainedModel:
        """The same random weights at each call, larger than the usual ones, so that FFNs and routers matter."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        model = self.class_(copy.deepcopy(self.config)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    def inputs(self, seed: int) -> dict[str, Tensor]:
        """A batch that the model accepts."""
        make = image_inputs if self.with_image else default_inputs
        return make(self.class_, self.config, torch.Generator().manual_seed(seed))


def cases() -> list[Case]:
    """Every class of the mappings that can be built here, each once, and the variants."""
    found = [Case(name, name) for name in OTHER_CLASSES]
    found += [Case(f"{name}[{label}]", name, entries) for name, (label, entries) in VARIANTS]
    listed = {
        (class_name, model_type if model_type in ALIASES else None): None
        for mapping in MAPPINGS
        for model_type, class_name in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items()
    }
    for class_name, alias in listed:
        if class_name not in UNBUILT:
            found.append(Case(f"{class_name}[{alias}]" if alias else class_name, class_name, alias=alias))
            if class_name in IMAGES and not alias:
                found.append(Case(f"{class_name}[image]", class_name, with_image=True))
    return found


def shrink(config: PretrainedConfig, path: str = "") -> dict[str, Any]:
    """The arguments that make a tiny configuration like `config`, which has its defaults."""
    arguments: dict[str, Any] = {}
    special = LAST_WORD
    values = vars(config)
    for name, value in values.items():
        if isinstance(value, PretrainedConfig):
            arguments[name] = type(value)(**merged(shrink(value, f"{path}.{name}"), _overrides(value)))
        elif name == "conv_dim" and isinstance(value, list | tuple):
            arguments[name] = [8] * len(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name in SPECIAL:
            arguments[name] = SPECIAL[name]
        elif name.endswith(("token_id", "token_index", "_id", "_index")) and value > VOCABULARY:
            special += 1
            arguments[name] = special
        elif name in SIZES:
            arguments[name] = SIZES[name]
            if name in WIDTHS:
                arguments[name] = next((w for tower, w in TOWERS.items() if tower in path), SIZES[name])
    for prefix in ("", "encoder_", "decoder_", "swa_", "cross_"):
        heads, groups = f"{prefix}num_attention_heads", f"{prefix}num_key_value_heads"
        if groups in arguments and values.get(heads) == values[groups]:  # not all classes can group heads
            arguments[groups] = arguments[heads]
    if values.get("head_dim") is not None and values.get("head_dim") == values.get("qk_rope_head_dim"):
        arguments["head_dim"] = arguments["qk_rope_head_dim"]
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = values.get(name)
        if isinstance(kinds, list) and "num_hidden_layers" in arguments:  # every kind of layer occurs
            depth = max(kinds.index(kind) for kind in set(kinds)) + 1
            arguments["num_hidden_layers"] = max(depth, arguments["num_hidden_layers"])
    rope = values.get("rope_parameters") or {}
    if "mrope_section" in rope:
        size = arguments.get("head_dim") or arguments["hidden_size"] // arguments["num_attention_heads"]
        total = int(size * rope.get("partial_rotary_factor", 1)) // 2
        sections = [total - 2 * (total // 3), total // 3, total // 3]
        arguments["rope_parameters"] = rope | {"mrope_section": sections}
    return arguments


def _overrides(config: PretrainedConfig) -> dict[str, Any]:
    return copy.deepcopy(OVERRIDES.get(config.model_type, {}))


def merged(arguments: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` over `arguments`; a mapping for a sub-configuration changes entries of it."""
    for name, value in overrides.items():
        old = arguments.get(name)
        if isinstance(old, PretrainedConfig) and isinstance(value, Mapping):
            entries = {key: entry for key, entry in old.to_dict().items() if key in shrink(type(old)())}
            arguments[name] = type(old)(**merged(entries, _overrides(old) | dict(value)))
        else:
            arguments[name] = value
    return arguments


def tiny_config(config_class: type[PretrainedConfig], **entries: Any) -> PretrainedConfig:
    default = config_class()
    arguments = merged(shrink(default), _overrides(default))
    return config_class(**merged(arguments, entries))
