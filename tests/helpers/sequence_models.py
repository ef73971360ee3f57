"""Small models of transformers that label texts about the weather, with random weights."""

from __future__ import annotations

import torch
import transformers as tf
from helpers.weather import FILLERS, SIGNS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *FILLERS,
    *(f"rare{i}" for i in range(170)),
    *(word for words in SIGNS.values() for word in words),
]
LABELS = ("cold", "hot", "wet")


def tokenizer(folder, *, words=WORDS, special=True, **changes):
    """A tokenizer of whole words in ``folder``."""
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        built.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 16, **changes}
    tf.PreTrainedTokenizerFast(tokenizer_object=built, **names).save_pretrained(folder)


def named(labels=LABELS):
    """The labels as a configuration has them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def bert(tokens=None, labels=LABELS):
    torch.manual_seed(0)
    config = tf.BertConfig(vocab_size=tokens or len(WORDS), initializer_range=0.3, **SIZES, **named(labels))
    return tf.BertForSequenceClassification(config)


def roberta():
    torch.manual_seed(0)
    config = tf.RobertaConfig(
        vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.3, **SIZES, **named()
    )
    return tf.RobertaForSequenceClassification(config)


def deberta():
    torch.manual_seed(0)
    config = tf.DebertaV2Config(vocab_size=len(WORDS), initializer_range=0.3, relative_attention=True,
                                position_biased_input=False, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
                                **SIZES, **named())  # fmt: skip
    return tf.DebertaV2ForSequenceClassification(config)


def modernbert():
    torch.manual_seed(0)
    config = tf.ModernBertConfig(vocab_size=len(WORDS), pad_token_id=0, cls_token_id=2, sep_token_id=3,
                                 initializer_range=0.3, **SIZES, **named())  # fmt: skip
    return tf.ModernBertForSequenceClassification(config)


def gpt2():
    torch.manual_seed(0)
    config = tf.GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=2, n_positions=20,
                           pad_token_id=0, initializer_range=0.3, **named())  # fmt: skip
    return tf.GPT2ForSequenceClassification(config)


def llama():
    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.3, **SIZES, **named())
    return tf.LlamaForSequenceClassification(config)


MODELS = {make.__name__: make for make in (bert, roberta, deberta, modernbert, gpt2, llama)}


def saved(folder, model, **how):
    """A directory with the model and its tokenizer."""
    folder.mkdir()
    model.save_pretrained(folder, **how)
    tokenizer(folder)
    return folder
