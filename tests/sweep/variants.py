"""Cases that no Auto class has, and configurations that have misled pruners."""

from typing import Any

_NAMES = """
# Models without a head, which some checkpoints of retrievers hold.
LlamaModel MistralModel Qwen2Model Qwen3Model Gemma3TextModel GPT2Model OPTModel BloomModel MptModel
T5Model BartModel MPNetModel ModernBertModel NomicBertModel EuroBertModel GteModel LiltModel
MixtralModel Qwen3MoeModel WhisperModel Phi3Model JinaEmbeddingsV3Model XLNetModel
# Other heads.
LlamaForSequenceClassification MistralForSequenceClassification Qwen2ForSequenceClassification
Qwen3ForSequenceClassification GPT2ForSequenceClassification Gemma3TextForSequenceClassification
BertForSequenceClassification RobertaForSequenceClassification DebertaV2ForSequenceClassification
ModernBertForSequenceClassification DistilBertForSequenceClassification
MixtralForSequenceClassification BartForSequenceClassification T5ForSequenceClassification
BertForTokenClassification BertForQuestionAnswering LlamaForTokenClassification
LiltForTokenClassification
# Vision.
ViTModel ViTForImageClassification DeiTForImageClassification BeitModel Dinov2Model
Dinov2ForImageClassification Dinov2WithRegistersModel DINOv3ViTModel IJepaModel CLIPModel
CLIPTextModelWithProjection CLIPVisionModel CLIPVisionModelWithProjection SiglipModel
SiglipTextModel SiglipVisionModel SiglipForImageClassification YolosModel
# Sound.
Wav2Vec2Model Wav2Vec2ForCTC HubertModel WavLMModel UniSpeechModel Data2VecAudioModel
WhisperForAudioClassification SEWModel
"""
OTHER_CLASSES = [name for line in _NAMES.splitlines() if not line.startswith("#") for name in line.split()]

_SMALL_MOE = {"moe_intermediate_size": 24}
VARIANTS: tuple[tuple[str, tuple[str, dict[str, Any]]], ...] = (
    # Another entry of the configuration drives tensors of the same width.
    (
        "DeepseekV3ForCausalLM",
        ("shared as wide as dense", _SMALL_MOE | {"n_shared_experts": 2, "first_k_dense_replace": 1}),
    ),
    ("DeepseekV2ForCausalLM", ("shared as wide as dense", _SMALL_MOE | {"n_shared_experts": 2})),
    (
        "Qwen2MoeForCausalLM",
        ("shared as wide as dense", {"shared_expert_intermediate_size": 48, "mlp_only_layers": [0]}),
    ),
    (
        "Qwen2MoeForCausalLM",
        ("all widths equal", {"shared_expert_intermediate_size": 48, "moe_intermediate_size": 48}),
    ),
    (
        "Qwen3NextForCausalLM",
        ("all widths equal", {"shared_expert_intermediate_size": 48, "moe_intermediate_size": 48}),
    ),
    (
        "Llama4ForCausalLM",
        ("all widths equal", {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}),
    ),
    ("Qwen3MoeForCausalLM", ("dense first layer", {"mlp_only_layers": [0]})),
    (
        "Qwen3MoeForCausalLM",
        ("dense first layer, all widths equal", {"mlp_only_layers": [0], "moe_intermediate_size": 48}),
    ),
    ("Qwen3MoeForCausalLM", ("every second layer", {"decoder_sparse_step": 2, "num_hidden_layers": 4})),
    ("HunYuanMoEV1ForCausalLM", ("experts of another width", {"moe_intermediate_size": 24})),
    ("GptOssForCausalLM", ("eight experts", {"num_local_experts": 8})),
    ("MixtralForCausalLM", ("one expert of four", {"num_experts_per_tok": 1})),
    # Widths that are not written down, or in several ways.
    ("GPT2LMHeadModel", ("n_inner", {"n_inner": 48})),
    ("GPTNeoForCausalLM", ("intermediate_size", {"intermediate_size": 48})),
    ("FalconForCausalLM", ("ffn_hidden_size", {"ffn_hidden_size": 48})),
    ("Dinov2Model", ("SwiGLU", {"use_swiglu_ffn": True})),
    # Ties and biases.
    ("LlamaForCausalLM", ("tied embeddings", {"tie_word_embeddings": True})),
    ("LlamaForCausalLM", ("biases", {"mlp_bias": True, "attention_bias": True})),
    ("LlamaForCausalLM", ("grouped heads", {"num_key_value_heads": 2})),
    ("AlbertModel", ("two groups", {"num_hidden_groups": 2, "num_hidden_layers": 4})),
    (
        "ZambaForCausalLM",
        (
            "one shared layer",
            {
                "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
                "num_hidden_layers": 4,
            },
        ),
    ),
    (
        "Zamba2ForCausalLM",
        (
            "two shared layers",
            {
                "num_mem_blocks": 2,
                "layers_block_type": ["linear_attention", "hybrid"] * 4,
                "num_hidden_layers": 8,
            },
        ),
    ),
    ("T5ForConditionalGeneration", ("gated", {"feed_forward_proj": "gated-gelu"})),
    ("MistralForCausalLM", ("sliding window", {"sliding_window": 9})),
)
