"""A tiny random model of any causal-language-model class of transformers, built from its config class, saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "see", "red", "blue", "green", "sun", "moon")
VOCABULARY = 320
N_LAYERS = 4
MOST_PARAMETERS = 10_000_000
STANDARD_DEVIATION = 0.05

# What settings mean is told by their names, which families share: a name stands here once for all of them.
SIZES: tuple[tuple[int, str], ...] = (
    (64, "hidden_size d_model n_embd embedding_dim embedding_size emb_dim word_embed_proj_dim lru_width backbone_hidden_size"
    " input_embedding_size output_embedding_size hidden_size_global out_hidden_size projector_output_dim input_size"),
    (96, "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff d_ff d_inner ffn_hidden_size"
    " feed_forward_size intermediate_size_mlp shared_expert_intermediate_size shared_intermediate_size mlp_dim"
    " shared_experts_intermediate_size dense_intermediate_size"),
    (32, "moe_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size kv_lora_rank q_lora_rank"
    " o_lora_rank router_hidden_size moe_ffn_hidden_size"),
    (128, "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions"
    " original_max_position_embeddings model_max_length attention_hidden_size linear_hidden_size"),
    (VOCABULARY, "vocab_size decoder_vocab_size unpadded_vocab_size vocab_size_per_layer_input pronunciation_vocab_size"
    " shape_vocab_size"),
    (N_LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_decoder_layers"
    " num_encoder_layers depth"),
    (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads"
    " num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads linear_num_value_heads"
    " linear_num_heads conf_num_attention_heads time_step_rank mamba_dt_rank"),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk moe_k"
    " num_experts_per_token top_k_experts index_topk_blocks n_groups num_query_groups"),
    (8, "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num hidden_size_per_layer_input"
    " laurel_rank rotary_dim qk_nope_head_dim qk_rope_head_dim d_rel gated_norm_rank"),
    (16, "index_n_heads"),
    (1, "n_group topk_group num_expert_group"),
    (16, "head_dim v_head_dim qk_head_dim swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim dim_head d_kv d_head"
    " kv_channels attention_head_size index_head_dim state_size mamba_d_state ssm_state_size query_pre_attn_scalar"
    " sliding_window sliding_window_size window_size local_attention attention_window_size attention_chunk_size"
    " mamba_chunk_size chunk_size block_size image_size patch_size index_topk hc_lowrank rel_extent"),
)  # fmt: skip
SIZE_OF = {name: size for size, names in SIZES for name in names.split()}
COUNT_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")
PLAIN_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
DEFAULTS = {"head_dim": 16, "num_experts_per_tok": 2}  # what a class without defaults leaves to the checkpoint
OTHER_TOKEN = VOCABULARY - 1  # images, audio and the like: no text has it

# Settings that depend on one another in a class, and whose names do not say it.
ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
DEPENDENT: dict[str, dict[str, Any]] = {
    "BltForCausalLM": {"encoder_hash_byte_group_vocab": 64},
    "CohereCompassForCausalLM": {"rope_parameters": {"full_attention": ROTARY, "sliding_attention": ROTARY}},
    "DbrxForCausalLM": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8}},
    "Dots1ForCausalLM": {"n_routed_experts": 8, "n_shared_experts": 1},
    "Gemma3nForCausalLM": {"intermediate_size": 96, "num_kv_shared_layers": 0},
    "Dots3NoteForCausalLM": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 32,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "Mamba2ForCausalLM": {"head_dim": 32},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "Qwen4ExpForCausalLM": {
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "ngram_vocab_size_base": 100,
    },
    "ReformerModelWithLMHead": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (32, 32)},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "ZambaForCausalLM": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
}


class CannotBuild(Exception):
    """No tiny model of a class can be built from its config class; the reason."""


def class_names() -> list[str]:
    """Every causal-language-model class of the installed transformers, once, in order of name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def save(class_name: str, folder: Path) -> None:
    """Saves a tiny random model of the class and a tiny tokenizer; raises `CannotBuild` with the reason."""
    torch.manual_seed(0)
    model = _build(class_name)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains start at 0 and 1: every term shall count
            parameter.add_(STANDARD_DEVIATION * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _build(class_name: str) -> Any:
    """A model of the class in memory, from the defaults of its config class with every size small."""
    from transformers import AutoModelForCausalLM

    config_class, reason = _config_class(class_name), ""
    for with_lists in (True, False):  # lists with an entry per layer are cut, or else left to the class
        try:
            settings = _small_settings(config_class(), with_lists=with_lists)
            _merge(settings, DEPENDENT.get(class_name, {}))
            config = config_class(**settings)
            with torch.device("meta"):
                n_parameters = sum(
                    parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters()
                )
            if n_parameters > MOST_PARAMETERS:
                raise ValueError(f"{n_parameters:,} parameters, with all known sizes small")
            return AutoModelForCausalLM.from_config(config)
        except Exception as error:  # whatever a config class or a model class of transformers may raise
            lines = f"{type(error).__name__}: {error}".replace(":\n", ":").splitlines()
            reason = reason or " ".join(" ".join(lines[:2]).split())
    raise CannotBuild(reason)


def _config_class(class_name: str) -> Any:
    """The config class that transformers reads the model class by: its own, or the multimodal one around it."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types = [model_type for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == class_name]
    config_class = getattr(transformers, class_name).config_class
    return config_class if config_class.model_type in types else transformers.CONFIG_MAPPING[types[0]]


def _small_settings(config: Any, *, with_lists: bool) -> dict[str, Any]:
    """The settings of a config with every size small, inner configs likewise; tokens stay inside the vocabulary."""
    values, settings = config.to_dict(), {}
    n_layers = next((values[name] for name in COUNT_OF_LAYERS if isinstance(values.get(name), int)), None)
    for name, value in values.items():
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if name in (config.sub_configs or {}) and isinstance(value, dict):
            settings[name] = _small_settings(getattr(config, name), with_lists=with_lists)
        elif name.endswith(("token_id", "token_index")) and is_count:
            settings[name] = PLAIN_TOKENS.get(name, OTHER_TOKEN)
        elif name in DEFAULTS and value is None:
            settings[name] = DEFAULTS[name]
        elif name in SIZE_OF and is_count:
            settings[name] = min(value, SIZE_OF[name])
        elif with_lists and isinstance(value, list) and len(value) == n_layers:
            settings[name] = _cut(value)
        elif name == "is_decoder":
            settings[name] = True
    if "qk_rope_head_dim" in settings:  # latent attention: the rotated part of a head is what the rest calls a head
        settings |= {"head_dim": SIZE_OF["qk_rope_head_dim"], "num_key_value_heads": SIZE_OF["num_attention_heads"]}
    return settings


def _cut(entries: list[Any]) -> list[Any]:
    """`N_LAYERS` entries of a list, every kind of entry among them as far as there is room."""
    kinds = [entry for position, entry in enumerate(entries) if entry not in entries[:position]]
    return (kinds + entries)[:N_LAYERS]


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict):
            _merge(settings.setdefault(name, {}), value)
        else:
            settings[name] = value


def _tokenizer() -> Any:
    """A byte-level tokenizer that was trained on a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([" ".join(WORDS)] * 50, vocab_size=VOCABULARY - 10, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    )
