"""What single types of models need beyond the common sizes, and what cannot be built here."""

from typing import Any

_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_HALF_MROPE = {
    "rope_parameters": _MROPE["rope_parameters"] | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}

OVERRIDES: dict[str, dict[str, Any]] = {
    # Their defaults leave open what the model needs.
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "longcat_flash": {"zero_expert_num": 2},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
    },
    "esm": {"vocab_size": 260, "pad_token_id": 0, "mask_token_id": 3},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 48},
    "hunyuan_vl_text": {
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1, 1]},
    },
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    # Layers of several kinds: enough of them that every kind occurs.
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 0,
    },
    "bamba": _MAMBA | {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        "num_hidden_layers": 3,
        "num_dense_layers": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    # Layers of these share their attention and FFN.
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"],
        "intermediate_size": 48,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    # Sizes that must fit together.
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "mamba2": {"num_heads": 8},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0, "use_cache": False},
    "zaya": {"num_experts_per_tok": 1},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1, "n_recurrent_layers": 1},
    "blt": {"num_hidden_layers": 2},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dots3_note_text": {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]},
    "glm5_next_text": {"qk_rope_head_dim": 0, "num_key_value_heads": 4, "head_dim": 0},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 24]},
    "lilt": {"hidden_size": 96},
    "xmod": {"default_language": "en_XX"},
    "led": {"attention_window": 16},
    "longformer": {"attention_window": 16},
    "pegasus_x": {"block_size": 16, "num_global_tokens": 4},
    "neomme": {"head_dim": 16},
    "dia": {"delay_pattern": [0, 1, 2], "decoder_config": {"num_channels": 3}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    # Rotary embeddings of three axes.
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 28],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    },
    "glm46v_text": _HALF_MROPE,
    "glm4v_text": _MROPE,
    "glm4v_moe_text": _HALF_MROPE,
    "glm_ocr_text": _MROPE,
    "paddleocr_vl_text": _MROPE,
    "qwen2_5_omni_text": _MROPE,
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl_text": _MROPE,
    # Vision and audio towers.
    "llama4_vision_model": {
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "image_size": 16,
    },
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "molmo2_vision": {"image_size": [16, 16]},
    "cohere2_vision": {"alignment_intermediate_size": 72},
    "parakeet_encoder": {"subsampling_conv_channels": 8, "num_mel_bins": 8, "conv_kernel_size": 3},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [16, 32], "image_size": 64},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [16, 32], "image_size": 64},
    "dots3_note_vision_encoder": {"num_hidden_layers": 2, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "florence_vision": {
        "embed_dim": [32, 32],
        "depths": [1, 1],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "patch_prenorm": [False, True],
        "num_heads": [4, 4],
        "num_groups": [4, 4],
        "window_size": 4,
        "projection_dim": 32,
    },
    "hunyuan_vl_vision": {"img_max_token_num": 64, "max_vit_seq_len": 64, "max_image_size": 64},
    "hy_v4_vl_vision": {"max_image_size": 64},
    "janus_vqgan": {
        "num_embeddings": 32,
        "num_patches": 4,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
    },
    "muse_spark_audio": {
        "num_hidden_layers": 2,
        "patch_sizes": [4, 4],
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
    },
    "muse_spark_text": {"layer_types": None},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "phi4_multimodal_audio": {
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 32,
        "input_size": 8,
    },
    "pp_formulanet_vision": {
        "post_conv_in_channels": 32,
        "post_conv_mid_channels": 32,
        "post_conv_out_channels": 32,
    },
    "yolos": {"image_size": [16, 16]},
    "internvl_vision": {"image_size": [16, 16], "patch_size": [4, 4]},
    "qianfan_ocr_vision": {"image_size": [16, 16], "patch_size": [4, 4]},
    "llava_next": {"image_grid_pinpoints": [[16, 16]]},
    "llava_next_video": {"image_grid_pinpoints": [[16, 16]]},
    "llava_onevision": {"image_grid_pinpoints": [[16, 16]]},
    "pixtral": {"image_size": 16, "patch_size": 4},
    "aria": {"projector_patch_to_query_dict": {16: 8}},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "blip-2": {"image_token_id": 201},
    "instructblip": {"image_token_id": 201},
    "instructblipvideo": {"video_token_id": 201},
    "chameleon": {"vocabulary_map": {"<image>": 201}},
    "emu3": {"vocabulary_map": {"<image>": 201, "<|extra_200|>": 202}},
    "emu3_vqgan": {"codebook_size": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    "vibevoice_acoustic_tokenizer": {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]},
    "vibevoice_acoustic_tokenizer_encoder": {
        "num_filters": 4,
        "downsampling_ratios": [2, 2],
        "depths": [1, 1, 1],
    },
    "kosmos-2": {"latent_query_num": 8},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1]},
    "step3p5": {"sliding_window": 9},
    "radio": {"max_img_size": 16},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "mimi": {
        "upsample_groups": 4,
        "num_filters": 4,
        "codebook_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
    },
}
CLASSES: dict[str, dict[str, Any]] = {
    "ReformerModelWithLMHead": {"is_decoder": True},
    "T5ForSequenceClassification": {"decoder_start_token_id": 0},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
}
"""What single classes need beyond that."""
ALIASES = [
    "exaone",
    "internlm3",
    "iquestcoder",
    "sarvam_mla",
    "sarvam_moe",
    "glmga",
    "pp_chart2table",
    "shieldgemma2",
]
"""Types of models whose configuration is their own, but whose class is another type's."""
UNBUILT: dict[str, str] = {
    "Apertus1p5ForConditionalGeneration": "its audio codec fixes the hidden size of 512",
    "DiffusionGemmaForBlockDiffusion": "its forward pass draws random numbers",
    "Dots3NoteForConditionalGeneration": "its vision tower cannot have fewer layers than its default",
    "FastVlmForConditionalGeneration": "its vision tower needs timm",
    "Gemma3nForConditionalGeneration": "its vision tower needs timm",
    "Gemma4AssistantForCausalLM": "it reads the keys and values of another model",
    "Gemma4UnifiedAssistantForCausalLM": "it reads the keys and values of another model",
    "Granite4VisionForConditionalGeneration": "its Q-Former needs hidden sizes of at least 64",
    "Llama4ForConditionalGeneration": "its forward pass raises an AttributeError in this release of transformers",
    "PI0ForConditionalGeneration": "it maps images and states of a robot to actions",
    "PerceptionLMForConditionalGeneration": "its vision tower needs timm",
}
"""Classes that have no case, and why."""
