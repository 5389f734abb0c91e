"""Small random models of every kind that transformers has for causal language modelling."""

import inspect

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 61
MAX_WEIGHTS = 10**7
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "initializer_range": 0.3, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_ctx": 64, "rotary_dim": 8, "d_model": 32,
    "n_heads": 4, "n_layers": 2, "ffn_dim": 48, "word_embed_proj_dim": 32, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "decoder_sparse_step": 1, "moe_num_experts": 4, "moe_k": 2,
}  # fmt: skip
LATENT = {  # multi-head latent attention
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip
OWN_SIZES = {
    "deepseek_v2": LATENT | {"head_dim": 8, "topk_method": "greedy"},
    "deepseek_v3": LATENT | {"head_dim": 8},
    "glm4_moe_lite": LATENT | {"head_dim": 8},
    "youtu": LATENT | {"head_dim": 8},
    "axk1": LATENT | {"head_dim": 8},
    "minicpm3": LATENT | {"head_dim": 8},
    "sarvam_mla": LATENT | {"head_dim": 8},
    "longcat_flash": LATENT | {
        "num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 1,
        "moe_topk": 2,
    },
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 1},
    "llama4_text": {"intermediate_size_mlp": 48},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
}  # fmt: skip


def rope(**options):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0} | options}


def windows(own):
    """Layers with a window of their own, in turn with full ones."""
    return {
        "sliding_window": own, "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip


# Kinds of one family that differ in what matters here.
VARIANTS = {
    "llama linear": rope(rope_type="linear", factor=2.0),
    "llama llama3": rope(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "llama yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "llama dynamic": rope(rope_type="dynamic", factor=4.0),
    "mistral full": {"sliding_window": None},
    "mistral sliding 6": {"sliding_window": 6},
    "mistral sliding 64": {"sliding_window": 64},
    "mixtral full": {"sliding_window": None},
    "qwen2 mixed 6": windows(6),
    "qwen2 mixed 64": windows(64),
    "qwen3 mixed 6": windows(6),
    "phi3 partial": {"sliding_window": None} | rope(partial_rotary_factor=0.5),
    "phi3 longrope": {
        "sliding_window": None, "original_max_position_embeddings": 48,
    } | rope(
        rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0],
        original_max_position_embeddings=48,
    ),
    "gpt_neox partial": rope(partial_rotary_factor=0.25),
    "gpt_neox sequential": {"use_parallel_residual": False} | rope(partial_rotary_factor=0.25),
    "lfm2 convolutions": {"layer_types": ["conv", "full_attention"] * 2},
    "starcoder2 6": {"sliding_window": 6},
    "starcoder2 full": {"sliding_window": None},
    "gemma2 64": {
        "sliding_window": 64, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 3.0,
    },
    "gemma3_text 6": windows(6),
    "gemma3_text 64": windows(64),
    "gpt_oss 6": {"sliding_window": 6},
    "gpt_oss 64": {"sliding_window": 64},
    "exaone4 6": {"sliding_window": 6},
    "exaone4 64": {"sliding_window": 64},
    "cohere2 6": {"sliding_window": 6},
    "ministral3 scaled": {"sliding_window": None} | rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=48, beta_fast=32.0, beta_slow=1.0,
        mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5,
    ),
}  # fmt: skip


# Not decoders of text alone: decoders of encoders' outputs, encoders made causal, images and sound; and those
# that are large whatever sizes one asks for, or need sizes of their own that say nothing here.
LEFT_OUT = {
    "bamba", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot",
    "blenderbot-small", "blt", "camembert", "cpmant", "data2vec-text", "dbrx", "electra", "emu3", "ernie",
    "falcon_h1", "fuyu", "gemma3", "gemma3n", "git", "got_ocr2", "gpt-sw3", "granitemoehybrid",
    "lfm2_moe", "llama4", "mamba2", "marian", "mbart", "megatron-bert", "mllama", "moshi", "musicgen",
    "musicgen_melody", "mvp", "pegasus", "phi4_multimodal", "plbart", "prophetnet", "qwen3_5",
    "qwen3_5_moe", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "trocr", "whisper", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "zamba", "zamba2",
}  # fmt: skip


def every_family() -> list[str]:
    """Return the names of all kinds of decoder, and of their variants."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS} - LEFT_OUT)


def build(name: str, seed: int = 0, **changes):
    """Return a small random model of a kind; norms are not all ones, as in trained models."""
    kind, _, _ = name.partition(" ")
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    known = inspect.signature(config_class.__init__).parameters
    sizes = SIZES | EXPERTS | OWN_SIZES.get(kind, {}) | VARIANTS.get(name, {}) | changes
    always = {*VARIANTS.get(name, {}), *changes}
    config = config_class(**{key: value for key, value in sizes.items() if key in known or key in always})
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    with torch.device("meta"):
        n_weights = sum(weight.numel() for weight in model_class(config).parameters())
    if n_weights > MAX_WEIGHTS:
        raise ValueError(f"{name} has {n_weights:,} weights whatever sizes one asks for")
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key and weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            if "sinks" in key:
                weight.normal_()
    return model


# What was seen with transformers 5.2.0; later ones have more families, and take some that are refused here.
EXACT = {
    "afmoe", "apertus", "arcee", "aria_text", "bitnet", "code_llama", "cohere", "cohere2", "cohere2 6",
    "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone4 6",
    "exaone4 64", "exaone_moe", "flex_olmo", "gemma", "gemma2", "gemma2 64", "gemma3_text",
    "gemma3_text 6", "gemma3_text 64", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt_neox",
    "gpt_neox partial", "gpt_neox sequential", "gpt_oss", "gpt_oss 6", "gpt_oss 64", "granite",
    "granitemoe", "granitemoeshared", "helium", "jais2", "jetmoe", "lfm2", "llama", "llama linear",
    "llama llama3", "llama yarn", "longcat_flash", "minimax_m2", "ministral", "ministral3",
    "ministral3 scaled", "mistral", "mistral full", "mistral sliding 6", "mistral sliding 64", "mixtral",
    "mixtral full", "modernbert-decoder", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "persimmon",
    "phi", "phi3", "phi3 longrope", "phi3 partial", "phimoe", "qwen2", "qwen2 mixed 6", "qwen2 mixed 64",
    "qwen2_moe", "qwen3", "qwen3 mixed 6", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2", "starcoder2 6", "starcoder2 full", "vaultgemma", "youtu",
}  # fmt: skip
REFUSED = {
    "biogpt", "bloom", "codegen", "ctrl", "diffllama", "doge", "falcon", "falcon_mamba", "gemma3n_text",
    "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "gptj", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "jamba", "lfm2 convolutions", "llama dynamic", "llama4_text", "mamba", "minimax", "mpt", "nemotron",
    "openai-gpt", "opt", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv",
    "xglm", "xlstm",
}  # fmt: skip
NOT_BUILT = {"cwm", "glm_moe_dsa", "modernbert-decoder"}  # from these sizes, in every version
