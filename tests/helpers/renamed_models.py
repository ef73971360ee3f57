"""Small models of transformers whose weights have other names or shapes in files than in the model."""

from __future__ import annotations

import torch
import transformers as tf

V, D = 600, 32
SIZES = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 40, "initializer_range": 0.3}  # fmt: skip
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip


def qwen3_moe(size=V, **config):
    """The configuration of a mixture: its experts are one tensor in the model, many in files."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return tf.Qwen3MoeConfig(vocab_size=size, **DECODER, **experts, **config)


def mixtral(size=V, **config):
    """The same, and its files call the experts otherwise."""
    return tf.MixtralConfig(vocab_size=size, **DECODER, num_local_experts=4, **config)


def gpt_neox(size=V, **config):
    """Its head is ``embed_out`` in files."""
    return tf.GPTNeoXConfig(vocab_size=size, **SIZES, **config)


def llava():
    """Its text model stands elsewhere in files."""
    text = tf.LlamaConfig(vocab_size=V, **SIZES)
    vision = tf.CLIPVisionConfig(**VISION, projection_dim=16)
    return tf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=5)


def gemma3():
    """So does this one's."""
    text = tf.Gemma3TextConfig(vocab_size=V, **DECODER)
    vision = tf.SiglipVisionConfig(**VISION)
    marks = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    return tf.Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=4, **marks)


def marian():
    """Its positions are computed, and never stored."""
    halves = {f"{half}_{key}": n for half in ("encoder", "decoder")
              for key, n in (("layers", 1), ("ffn_dim", 48), ("attention_heads", 2))}  # fmt: skip
    return tf.MarianConfig(vocab_size=V, d_model=D, **halves, max_position_embeddings=40, init_std=0.3,
                           pad_token_id=V - 1, decoder_start_token_id=V - 1, eos_token_id=0,
                           forced_eos_token_id=0)  # fmt: skip


MODELS = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(vocab_size=V, **SIZES)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=V, n_embd=D, n_layer=2, n_head=2, n_positions=40, initializer_range=0.3,
                      bos_token_id=1, eos_token_id=2)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(mixtral()),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(qwen3_moe()),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(gpt_neox()),
    "llava": lambda: tf.LlavaForConditionalGeneration(llava()),
    "gemma3": lambda: tf.Gemma3ForConditionalGeneration(gemma3()),
    "marian": lambda: tf.MarianMTModel(marian()),
}  # fmt: skip
"""Two whose names are the same, for comparison, and those that are renamed."""


def built(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().eval()
