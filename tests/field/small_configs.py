"""Small configurations of transformers classes, made from the default ones by the names of their keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import transformers as tf

V = 480
"""Rows of the tables; the ids of special tokens are below :data:`FIRST_WORD`."""
FIRST_WORD = 60

_WIDTH = 32
_LAYERS = (
    r"(num_|n_)?(hidden_|text_|vision_|audio_|speech_|t2u_|conf_|lstm_|attention_)?(encoder_|decoder_)?(hidden_)?layers?"
    r"|(encoder|decoder|speech_encoder|t2u_encoder|t2u_decoder)_(num_hidden_)?layers|depth|num_encoder_blocks"
    r"|num_hidden_layers|(n|num)_layers?|num_blocks|num_global_layers|[lxr]_layers|resampler_depth"
    r"|num_hidden_groups|lqe_layers|num_lstm_layers|\w+_predictor_layers|perceiver_resampler_num_layers"
    r"|memory_attention_num_layers|layers|num_(encoder|decoder)_layers|num_adapter_layers"
)
_SIZES: dict[str, int | Callable[[int], int]] = {
    r"(text_|t2u_|decoder_|input_|output_|src_|tgt_|entity_)?vocab_size|vocab_size_per_layer_input"
    r"|unpadded_vocab_size": V,
    _LAYERS: 2,
    r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|max_seq_len|context_length"
    r"|(t2u_|max_encoder_|max_decoder_)?max_position_embeddings|model_max_length": 64,
    r"(encoder|decoder)_ffn_dim|\w*ffn_hidden_size|(\w+_)?intermediate_(size|dim)(_mlp)?|ffn_dim|d_ff|dff|n_inner"
    r"|d_inner|dim_ff|mlp_dim|feedforward_dim|dim_feedforward|linear_units|intermediate_multiple_size"
    r"|(encoder|decoder)_linear_units": 48,
    r"(\w+_)?(num_)?(key_value_heads|kv_heads|kv_n_heads|query_groups)": 2,
    r"(\w+_)?head_dim|d_kv|(attention_)?dim_head|d_head|head_size|attention_head_dim|mamba_d_head": 8,
    r"qk_nope_head_dim|qk_rope_head_dim|v_head_dim": 8,
    r"qk_head_dim": 16,
    r"(q|kv|o)_lora_rank": 16,
    r"(\w+_)?(num_)?(attention_)?heads|n_heads?|(\w+_)?num_attention_heads|index_n_heads|(\w+_)?num_heads": 4,
    r"(\w+_)?(hidden_size|hidden_dim|embed_dim|embedding_dim|embedding_size|projection_dim|d_model|n_embd)"
    r"|dim|emb_dim|width|entity_emb_size|project_dim|image_token_embed_dim|hidden_size_global": _WIDTH,
    r"(num_|n_)?(local_|routed_)?experts|moe_num_experts": 4,
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_?k_experts": 2,
    r"n_group|topk_group|n_groups": 1,
    r"(n_|num_|moe_num_)?shared_experts": 1,
    r"first_k_dense_replace": 1,
    r"max_window_layers": 1,
    r"image_size|max_image_size|pretrain_image_size": 16,
    r"patch_size": 8,
    r"(\w+_)?sliding_window(_size)?|attention_window|local_attention": 16,
    r"spatial_merge_size|temporal_patch_size": lambda n: n,
    r"state_size|ssm_state_size|mamba_d_state|index_head_dim": 8,
    r"linear_num_key_heads|linear_num_value_heads|mamba_n_heads": 4,
    r"index_topk": 8,
    r"num_mel_bins|n_mel_bins|input_feat_size": 16,
}  # fmt: skip
_LIMIT = 4096
"""Larger numbers under other keys are ids or counts of things that take memory: they become smaller."""

_TOKEN = re.compile(r"(\w+_)?(token_(id|index)|token|_index|id|ids)$")


_UNSET = {"head_dim": 8, "vocab_size": V}
"""Numbers for keys that are None by default."""

_CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": 4},
    "glm5_next_text": {"num_key_value_heads": 4},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "is_decoder": True},
}
"""What else must change, by model type."""


def small_config(kind: type) -> Any:
    """A small configuration for a class of transformers."""
    values = _shrunk(kind.config_class().to_dict(), iter(range(3, FIRST_WORD)))
    values.pop("architectures", None)
    return kind.config_class.from_dict(values)


def _shrunk(values: dict[str, Any], ids: Iterator[int]) -> dict[str, Any]:
    layers = next((v for k, v in values.items() if re.fullmatch(_LAYERS, k) and isinstance(v, int)), None)
    found = {}
    for key, value in values.items():
        if key == "per_layer_config":
            found[key] = {i: changes for i, changes in (value or {}).items() if int(i) < 2} or None
        elif isinstance(value, dict) and key not in {"id2label", "label2id"}:
            found[key] = _shrunk(value, ids)
        elif isinstance(value, list):
            found[key] = _fewer(key, value, layers)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = _smaller(key, value, ids)
        else:
            found[key] = _UNSET.get(key) if value is None else value
    return found | _CHANGES.get(str(values.get("model_type")), {})


def _smaller(key: str, value: int, ids: Iterator[int]) -> int:
    if re.fullmatch(r"(\w+_)?(token_id|token_index|_id)", key):
        return value if value < 3 else next(ids, FIRST_WORD - 1)
    for pattern, size in _SIZES.items():
        if re.fullmatch(pattern, key):
            new = size(value) if callable(size) else size
            return new if value > 0 else value
    return value


def _fewer(key: str, value: list[Any], layers: int | None) -> list[Any]:
    if layers and len(value) == layers and layers > 2:
        return [value[0], value[-1]]
    if key == "mrope_section":
        return [2, 1, 1]
    return value
