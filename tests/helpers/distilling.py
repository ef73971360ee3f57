"""A BERT and a GPT-2 with random weights, compressed copies, and texts: for learning from the original."""

from __future__ import annotations

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import embcompress
from embcompress import DistilRecipe

WORDS = [f"w{i}" for i in range(90)]
BERT, GPT2 = "embeddings.word_embeddings", "transformer.wte"
QUICK = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 16}


def tokenizer(folder):
    """Words to ids, as the tokenizers library stores it."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def bert(size):
    config = tf.BertConfig(vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                           num_attention_heads=2, max_position_embeddings=16,
                           initializer_range=0.3)  # fmt: skip
    return tf.BertModel(config)


def gpt2(size):
    config = tf.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=2,
                           eos_token_id=3, initializer_range=0.3)  # fmt: skip
    return tf.GPT2LMHeadModel(config)


def fill(folder):
    """The models, compressed copies of them, and texts, in an empty folder."""
    for name, build in (("bert", bert), ("gpt2", gpt2)):
        (folder / name).mkdir()
        size = tokenizer(folder / name)
        torch.manual_seed(0)
        build(size).save_pretrained(folder / name)
        for kind, options in (("svd", {"rank": 6}), ("pq", {"ratio": 0.93}), ("int3", {"ratio": 0.8})):
            embcompress.factorize(folder / name, method=kind, output=folder / f"{name}-{kind}", **options)
    rng = np.random.default_rng(0)
    for name, count in (("train", 400), ("test", 80)):
        texts = [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n")


def tune(shelf, output, name="bert", kind="svd", *, options=None, **recipe):
    """Learn from the original; ``options`` are those of the workflow, the others those of the recipe."""
    return embcompress.distil(
        shelf / f"{name}-{kind}",
        shelf / name,
        shelf / "train.txt",
        output=output,
        recipe=DistilRecipe(**{**QUICK, **recipe}),
        **(options or {}),
    )


def compared(shelf, path, name="bert"):
    return embcompress.compare(path, shelf / name, shelf / "test.txt").likeness


def command(folder, texts, *options):
    """A compressed BERT, its original and texts in ``folder``; the command line that distils it."""
    (folder / "model").mkdir()
    torch.manual_seed(0)
    bert(tokenizer(folder / "model")).save_pretrained(folder / "model")
    embcompress.factorize(folder / "model", rank=6, output=folder / "small")
    (folder / "texts.txt").write_text("\n".join(texts))
    places = ("--teacher", folder / "model", "--texts", folder / "texts.txt")
    return ("distil", folder / "small", *places, "--learning-rate", "0.003", "--batch-size", "16", *options)
