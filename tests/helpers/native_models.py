"""Small models of libraries that have a form for factors."""

from __future__ import annotations

import transformers as tf

V = 120

SIZES = {
    "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40,
}  # fmt: skip


PURE = {
    "position_biased_input": False,
    "type_vocab_size": 0,
    "relative_attention": True,
    "pos_att_type": ["p2c"],
}


OPT_SIZES = {
    "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
    "max_position_embeddings": 40, "word_embed_proj_dim": 24, "dropout": 0.0,
}  # fmt: skip


MODELS = {
    "deberta": lambda: tf.DebertaForSequenceClassification(tf.DebertaConfig(**SIZES, **PURE)),
    "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**SIZES, **PURE)),
    "deberta-v2-body": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**SIZES, **PURE)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**OPT_SIZES)),
}
