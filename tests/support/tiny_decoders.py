"""Tiny random decoders, one or more for each architecture that edgekit says it exports."""

from __future__ import annotations

import importlib
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 97,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 48,
    "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.1 * i for i in range(8)],
}  # fmt: skip
DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
SELECTIVE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8}

LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
}  # fmt: skip

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral-sliding": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-sliding": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4": (
        "Gemma4Text",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 97,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "ministral3": ("Ministral3", {"head_dim": 16}),
    "afmoe": (
        "Afmoe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sliding_window": 8},
    ),
    "apertus": ("Apertus", {}),
    "phi3": ("Phi3", {}),
    "phi3-partial": ("Phi3", {"hidden_size": 128, "partial_rotary_factor": 0.5}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5, "hidden_size": 128}),
    "olmo": ("Olmo", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 8}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    ),
    "nemotron": ("Nemotron", {"hidden_size": 128}),
    "starcoder2": ("Starcoder2", {}),
    "cohere": ("Cohere", {}),
    "glm": ("Glm", {"head_dim": 32}),
    "glm4": ("Glm4", {"head_dim": 32}),
    "ernie4.5": ("Ernie4_5", {"head_dim": 16}),
    "stablelm": ("StableLm", {"hidden_size": 128}),
    "helium": ("Helium", {"head_dim": 16}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 16}),
    "exaone4": ("Exaone4", {"head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2}),
    "seed-oss": ("SeedOss", {"head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5, "hidden_size": 128}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "phimoe": ("Phimoe", {"num_local_experts": 4}),
    "glm4-moe": (  # experts in groups
        "Glm4Moe",
        {
            "head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
    ),
    "granite-moe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "deepseek-v3": ("DeepseekV3", {**LATENT, "qk_rope_head_dim": 8, "v_head_dim": 12}),
    "latent-wide-values": ("DeepseekV3", {**LATENT, "qk_rope_head_dim": 8, "v_head_dim": 32}),
    "deepseek-v2": ("DeepseekV2", {**LATENT, "qk_rope_head_dim": 8, "v_head_dim": 12}),  # complex tables
    "minicpm3": ("MiniCPM3", {**LATENT, "qk_rope_head_dim": 8, "v_head_dim": 12}),
    "gemma4-shared-caches": (
        "Gemma4Text",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 97,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gptj": ("GPTJ", {"rotary_dim": 8}),  # sin before cos, neighbours turned
    "codegen": ("CodeGen", {"rotary_dim": 8}),
    "gpt-neo": (
        "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "falcon": ("Falcon", {}),
    "falcon-grouped": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("Falcon", {"alibi": True, "multi_query": True, "new_decoder_architecture": False}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("Mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "vocab_size": 97}),
    "openai-gpt": ("OpenAIGPT", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 97}),
    "gemma3n": (  # shared caches, and changes of a part in place
        "Gemma3nText",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 97,
            "laurel_rank": 4,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "intermediate_size": [96] * 4,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        },
    ),
    "diffllama": ("DiffLlama", {}),  # two attentions a layer
    "nanochat": ("NanoChat", {"head_dim": 16}),  # turned backwards
    "ctrl": ("CTRL", {"n_embd": 64, "dff": 96, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 97}),
    "hunyuan-moe": ("HunYuanMoEV1", {"head_dim": 16, "num_experts": 4, "moe_topk": 2}),
    "megatron-bert": ("MegatronBert", {"is_decoder": True}),
    "gpt-neox-japanese": ("GPTNeoXJapanese", {"intermediate_multiple_size": 2}),
    "xglm": ("XGLM", {"d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4}),
    "roberta": ("Roberta", {"is_decoder": True}),  # positions from 1
    "bart": (  # positions from 2, and no argument for them
        "Bart",
        {
            "d_model": 64,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 96,
            "is_encoder_decoder": False,
        },
    ),
    "lfm2": ("Lfm2", {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2-bias": ("Lfm2", {"layer_types": ["full_attention", "conv"], "conv_bias": True, "conv_L_cache": 4}),
    "lfm2-moe": (
        "Lfm2Moe",
        {
            "layer_types": ["conv", "full_attention"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "num_dense_layers": 1,
        },
    ),
    "lfm3": ("Lfm3", {}),
    "qwen3.5": ("Qwen3_5Text", {"head_dim": 16, **DELTA}),
    "qwen3-next": (
        "Qwen3Next",
        {
            "head_dim": 16,
            **DELTA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "olmo-hybrid": ("OlmoHybrid", {**DELTA, "linear_num_key_heads": 4}),
    "mamba": ("Mamba", {"state_size": 8, "time_step_rank": 4}),
    "falcon-mamba": ("FalconMamba", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8}),
    "bamba": ("Bamba", {**SELECTIVE, "mamba_n_groups": 2, "attn_layer_indices": [1]}),
    "falcon-h1": ("FalconH1", {**SELECTIVE, "mamba_n_groups": 2, "mamba_d_ssm": 128, "head_dim": 16}),
    "granite4": (
        "GraniteMoeHybrid",
        {
            **SELECTIVE,
            "layer_types": ["mamba", "attention"],
            "mamba_n_groups": 1,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
        },
    ),
    "granite4-dense": (
        "GraniteMoeHybrid",
        {
            **SELECTIVE,
            "layer_types": ["mamba", "attention"],
            "mamba_n_groups": 1,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "position_embedding_type": "rope",
        },
    ),
    "nemotron-h": (
        "NemotronH",
        {
            "head_dim": 16,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "jamba": (
        "Jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
}
"""name -> transformers class prefix, configuration on top of COMMON."""

ALONE = ("GPT2", "Mpt", "OpenAIGPT", "CTRL")
"""Their configurations have names of their own."""

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "indexed-attention": (
        "DeepseekV32",
        {**LATENT, "qk_rope_head_dim": 8, "v_head_dim": 12, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4},
        "tokens that an indexer chooses",
    ),
    "big-bird": ("BigBird", {"is_decoder": True, "attention_type": "original_full"}, "attention interface"),
    "nemotron-h-moe": (
        "NemotronH",
        {"head_dim": 16, "layers_block_type": ["moe", "attention"], "n_routed_experts": 4, "moe_intermediate_size": 32},
        "experts other than",
    ),
    "kimi-linear": (
        "KimiLinear",
        {"num_hidden_layers": 4},
        r"layers\.0 \(KimiLinear\w+\): the way its recurrent state",
    ),
    "recurrent-gemma": (
        "RecurrentGemma",
        {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8},
        r"layers\.0 \(RecurrentGemma\w+\): uses neither|attention interface",
    ),
}
"""name -> transformers class prefix, configuration, words of the refusal."""


def build(prefix: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A random causal language model in float32; norms and biases are random too, so that swallowing one shows."""
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{prefix}Config")(**(settings if prefix in ALONE else {**COMMON, **settings}))
    head = "LMHeadModel" if prefix in ("GPT2", "OpenAIGPT", "CTRL") else "ForCausalLM"
    kind = prefix.removesuffix("Text") + head
    torch.manual_seed(seed)
    # Falcon's eager attention adds ALiBi twice.
    how = "sdpa" if prefix == "Falcon" else "eager"
    model = getattr(transformers, kind)._from_config(config, attn_implementation=how).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model
