"""Small configurations of transformers classes, made from the default ones by the names of their keys.

Most classes name sizes alike, so that a few patterns serve nearly all of them; ``CHANGES`` has the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

V, D, LAYERS = 480, 32, 2
FIRST_WORD = 60
"""Special tokens have smaller ids, words the others."""

SIZES = {
    r"num_kv_shared_layers": 0,
    r"type_vocab_size": 2,
    r"num_feat_extract_layers": 7,
    r"(\w+_)?vocab_size|vocab_size_per_layer_input": V,
    r"(\w+_)?(layers|blocks|hidden_groups)|(n|num)_layer|(resampler_)?depth": LAYERS,
    r"(\w+_)?(max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|context_length)|max_seq_len"
    r"|model_max_length": 64,
    r"(\w+_)?(ffn_dim|ffn_hidden_size|intermediate_(size|dim)|linear_units|feedforward_dim)|intermediate_size_mlp"
    r"|d_ff|dff|dim_ff|n_inner|d_inner|mlp_dim|dim_feedforward|intermediate_multiple_size": 48,
    r"(\w+_)?(key_value_heads|kv_heads|kv_n_heads|query_groups)": 2,
    r"qk_head_dim": 16,
    r"(\w+_)?head_dim|d_kv|(attention_)?dim_head|d_head|mamba_d_head|index_head_dim": 8,
    r"(q|kv|o)_lora_rank": 16,
    r"(\w+_)?heads|n_head|mamba_n_heads": 4,
    r"(\w+_)?(hidden_size|hidden_dim|embed_dim|embedding_dim|embedding_size|projection_dim|d_model|n_embd|lru_width)"
    r"|dim|emb_dim|entity_emb_size|hidden_size_global|word_embed_proj_dim|condition_dim|upsample_groups"
    r"|vision_output_dim|adapter_in_dim|projector_(in|out)put_dim|base_channels": D,
    r"(n_|num_|moe_num_)?shared_experts": 1,
    r"(\w+_)?experts": 4,
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_?k_experts": 2,
    r"n_group|topk_group|n_groups|first_k_dense_replace|max_window_layers|num_res_blocks": 1,
    r"((max|pretrain)_)?image_size": 16,
    r"patch_size|state_size|ssm_state_size|mamba_d_state": 8,
    r"(\w+_)?sliding_window(_size)?|attention_window|local_attention|context_size|index_topk": 16,
    r"num_mel_bins|n_mel_bins|input_feat_size": 16,
    r"rotary_dim": 8,
    r"num_filters|upsample_initial_channel": 8,
    r"encoder_hash_byte_group_vocab": 500,
}  # fmt: skip
"""Patterns of keys, the first that fits, and what they get in the place of a number above zero."""

LISTS: dict[str, list[Any]] = {
    "mrope_section": [2, 1, 1],
    "kv_source_layers": [0, 1],
    "embed_dim": [D] * 4,
    "hidden_sizes": [D] * 4,
    "channel_multiplier": [1, 1],
}
UNSET = {"head_dim": 8, "num_experts_per_tok": 2, "vocab_size": V}
"""Keys that may be None and then lead nowhere."""

ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64}
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": MAMBA,
    "chameleon": {"vocabulary_map": {"<image>": 5, **{f"IMGIMG{c}Z": 6 + i for i, c in enumerate("ABCD")}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7}},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": MAMBA,
    "glm5_next_text": {"num_key_value_heads": 4},
    "esm": {"pad_token_id": 1},
    **dict.fromkeys(
        [
            f"{name}_text"
            for name in (
                "glm4v",
                "glm4v_moe",
                "glm_image",
                "glm_ocr",
                "paddleocr_vl",
                "qwen2_vl",
                "qwen2_5_vl",
                "qwen2_5_omni",
                "qwen3_vl",
                "qwen3_vl_moe",
                "qwen3_5",
            )
        ],
        MROPE,
    ),
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "granitemoehybrid": MAMBA,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "neomme": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What else must change, by model type."""


def small_config(kind: Any) -> Any:
    """A small configuration for a class of transformers."""
    values = _shrunk(kind.config_class().to_dict(), iter(range(10, FIRST_WORD)))
    values.pop("architectures", None)
    if kind.__name__ == "ReformerModelWithLMHead":
        values["is_decoder"] = True
    return kind.config_class.from_dict(values)


def _shrunk(values: dict[str, Any], ids: Iterator[int]) -> dict[str, Any]:
    layers = max((len(v) for k, v in values.items() if k.endswith("layer_types") and v), default=0)
    layers = next(
        (n for k, n in values.items() if re.fullmatch("num_(hidden_)?layers|n_layer", k) and n), layers
    )
    found = {}
    for key, value in values.items():
        if key == "per_layer_config":
            last = [*(value or {}).values()][-1:]  # full attention is like the last layer's
            found[key] = {LAYERS - 1: _shrunk(last[0], ids)} if last else None
        elif isinstance(value, dict):
            found[key] = _shrunk(value, ids) if all(isinstance(k, str) for k in value) else value
        elif isinstance(value, list):
            few = [value[0], value[-1]] if layers > LAYERS and len(value) == layers else value
            found[key] = LISTS.get(key, few)[: len(few)]
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = _smaller(key, value, ids)
        else:
            found[key] = UNSET.get(key) if value is None else value
    if "kv_lora_rank" in found:  # latent attention has as many of both
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found | CHANGES.get(str(values.get("model_type")), {})


def _smaller(key: str, value: int, ids: Iterator[int]) -> int:
    if re.fullmatch(r"(\w+_)?(token_id|token_index)", key):
        return value if value < 3 else next(ids)
    return next((size for pattern, size in SIZES.items() if value > 0 and re.fullmatch(pattern, key)), value)
