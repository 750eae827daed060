"""The small numbers that entries of configurations get, by their names."""

VOCABULARY = 260
_TABLE = """
# Residual streams, and what is projected to them.
32 hidden_size d_model n_embd dim emb_dim embed_dim embedding_size word_embed_proj_dim
32 attention_hidden_size out_hidden_size projection_dim embedding_dim hidden_size_global text_hidden_size
32 encoder_hidden_size decoder_hidden_size vision_hidden_size pooler_hidden_size lru_width
32 input_embedding_size output_embedding_size output_dim proj_dim backbone_hidden_size cross_hidden_size
32 cross_attention_hidden_size audio_hidden_size image_text_hidden_size mlp_hidden_size d_latents
32 vision_output_dim moe_hidden_size patch_embed_hidden_size projector_hidden_size num_filters
32 downsample_hidden_size upsample_initial_channel subsampling_conv_channels conv_channels
32 nemo_conv_channels base_channels latent_channels output_channels
# Widths of FFNs: each entry has its own, so that one cannot be mistaken for another.
24 moe_intermediate_size expert_ffn_hidden_size
40 shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size
40 shared_experts_intermediate_size share_expert_dim
44 intermediate_size_mlp dense_intermediate_size
36 projection_intermediate_size projection_hidden_dim
48 intermediate_size ffn_dim encoder_ffn_dim d_ff dim_ff dff d_inner feed_forward_size hidden_dim mlp_dim
48 ffn_hidden_size speech_encoder_intermediate_size t2u_encoder_ffn_dim decoder_intermediate_size
52 decoder_ffn_dim t2u_decoder_ffn_dim
# Numbers of layers, grouped heads and experts in use.
1 n_group topk_group num_expert_group
2 linear_num_key_heads num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
2 num_decoder_layers depth layers num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers
2 speech_encoder_layers t2u_encoder_layers t2u_decoder_layers conf_num_hidden_layers num_experts_per_tok
2 num_experts_per_token moe_topk moe_k moe_top_k num_key_value_heads swa_num_key_value_heads num_kv_heads
2 encoder_num_key_value_heads index_n_heads resampler_depth decoder_num_key_value_heads
2 cross_num_key_value_heads type_vocab_size max_window_layers num_self_attends_per_block resampler_n_heads
2 resampler_heads aligner_num_add_layers decoder_num_layers
# Heads and experts.
4 num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
4 attention_heads num_encoder_attention_heads num_decoder_attention_heads encoder_num_attention_heads
4 decoder_num_attention_heads speech_encoder_attention_heads t2u_encoder_attention_heads
4 t2u_decoder_attention_heads conf_num_attention_heads swa_num_attention_heads num_sliding_attention_heads
4 cross_num_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts
4 qk_rope_head_dim linear_num_value_heads rotary_dim num_self_attention_heads num_cross_attention_heads
4 hidden_size_per_layer_input patch_size linear_num_heads num_mem_heads
# Widths of heads, and of what else is small.
8 head_dim d_kv kv_channels qk_nope_head_dim v_head_dim attention_head_size attention_head_dim
8 swa_head_dim global_head_dim index_head_dim linear_key_head_dim linear_value_head_dim dim_head d_head
8 resampler_head_dim cross_head_dim linear_head_dim num_mel_bins mm_tokens_per_image resampler_n_latents
8 resampler_num_latents num_query_tokens gated_norm_rank laurel_rank num_query_groups mamba_d_state
8 ssm_state_size state_size mamba_head_dim mamba_d_head mamba_headdim mamba_dt_rank time_step_rank
8 image_seq_length num_image_tokens d_rel hc_lowrank
12 qk_head_dim
16 q_lora_rank kv_lora_rank o_lora_rank window_size image_size chunk_size mamba_chunk_size
# Positions and windows.
64 max_position_embeddings n_positions n_ctx max_seq_len index_topk max_source_positions
64 max_target_positions model_max_length mem_len canvas_length rel_extent max_2d_position_embeddings
64 max_speech_positions max_text_positions num_position_embeddings max_encoder_position_embeddings
64 max_decoder_position_embeddings
# Less than the length of the inputs, so that the window matters.
9 sliding_window
# The rest.
3 num_channels in_channels out_channels
260 vocab_size vocab_size_per_layer_input decoder_vocab_size src_vocab_size tgt_vocab_size t2u_vocab_size
260 audio_vocab_size char_vocab_size unit_hifi_gan_vocab_size entity_vocab_size pronunciation_vocab_size
260 shape_vocab_size encoder_hash_byte_group_vocab codebook_vocab_size unpadded_vocab_size
"""
SIZES = {
    name: int(size)
    for size, *names in map(str.split, _TABLE.strip().splitlines())
    if size != "#"
    for name in names
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
"""Special tokens; the words of the inputs are other ones."""
WIDTHS = ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner")
TOWERS = {"vision": 56, "audio": 60, "speech": 60, "encoder": 64}
"""What entries in `WIDTHS` get in towers: sub-configurations with such a name."""
