"""Tokenizers of directories without tokenizer.json: opened with transformers, and compared with their rules.

What a WordPiece or a byte-level BPE tokenizer must count is written out by hand here; SentencePiece's own
library says what its models must count.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import transformers as tf
from helpers.checkpoints import assert_refused, succeed, table
from helpers.hostile import MB, READING, commands, needs_proc
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

from embcompress.checkpoint import open_checkpoint
from embcompress.data.counting import count_texts
from embcompress.data.priors import prior_of
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.tokenizer import converted, counting_of, tokenizer_in
from embcompress.storage.protobuf import field

ROWS = 300
TEXTS = ["the cat sat on the mat", "a hat, the cats", "dog", "naïve café the", ""]
SIZES = {"vocab_size": ROWS, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8}  # fmt: skip
MT = {"vocab_size": ROWS, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
      "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
      "decoder_ffn_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
      "decoder_start_token_id": 0}  # fmt: skip

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "##s",
    "sat",
    "on",
    "mat",
    "a",
    "hat",
    ",",
]
BYTES = sorted(ByteLevel.alphabet())
PIECES = ["<|endoftext|>", *BYTES, "Ġt", "he", "Ġthe"]
MERGES = "#version: 0.2\nĠ t\nh e\nĠt he\n"

MODULES = (
    *(*READING, "torch", "transformers", "tokenizers", "embcompress.pretrained.tokenizer"),
    "transformers.models.bert.tokenization_bert",
)
"""What counting with transformers loads."""


def model(path, config, files):
    """A directory with a table, a config.json and the files of a tokenizer."""
    path.mkdir()
    save_file({"model.embed_tokens.weight": table(ROWS, 8)}, path / "model.safetensors")
    config.save_pretrained(path)
    for name, contents in files.items():
        (path / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return path


def bert(path):
    return model(path, tf.BertConfig(**SIZES), {"vocab.txt": "\n".join(WORDS) + "\n"})


def gpt2(path):
    config = tf.GPT2Config(vocab_size=ROWS, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    vocab = json.dumps({piece: number for number, piece in enumerate(PIECES)})
    return model(path, config, {"vocab.json": vocab, "merges.txt": MERGES})


def counted(path):
    """What ``--corpus`` counts: the tokens with their numbers of occurrences, by id."""
    with open_checkpoint(path) as checkpoint:
        counts = count_texts(TEXTS, counting_of(checkpoint, ROWS), ROWS, str(path))
    return {int(row): int(counts[row]) for row in np.flatnonzero(counts)}


def encoded(path):
    """What AutoTokenizer makes of each text by itself."""
    made = tf.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return dict(sorted(Counter(id_ for text in TEXTS for id_ in made.encode(text)).items()))


def test_wordpiece_from_vocab_txt(tmp_path):
    """Longest pieces first, lower case, with [CLS] and [SEP] around each text."""
    path = bert(tmp_path / "bert")
    by_hand = {"[CLS]": 5, "[SEP]": 5, "the": 4, "cat": 2, "##s": 1, "sat": 1, "on": 1, "mat": 1,
               "a": 1, "hat": 1, ",": 1, "[UNK]": 3}  # fmt: skip
    assert counted(path) == {WORDS.index(word): by_hand[word] for word in sorted(by_hand, key=WORDS.index)}
    assert counted(path) == encoded(path)
    assert counted(path / "model.safetensors") == encoded(path)


def test_bytes_from_vocab_json_and_merges(tmp_path):
    """``the`` after a space is one piece; a text that begins with it has no space before."""
    path = gpt2(tmp_path / "gpt2")
    found = counted(path)
    assert found == encoded(path)
    assert found[PIECES.index("Ġthe")] == 3
    assert found[PIECES.index("he")] == 1
    assert sum(found.values()) == sum(len(text.encode()) for text in TEXTS) - 3 * 3 - 1


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_line_that_makes_tokenizer_json(tmp_path, build, monkeypatch):
    """Without transformers it is named; the file that it makes then counts the same."""
    path = build(tmp_path / "model")
    expected = counted(path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"make the file where it is installed: (.*)$") as error:
        counted(path)
    assert "'embcompress[transformers]'" in str(error.value)
    line = str(error.value).rpartition("installed: ")[2]
    exec(f"tf.{line}", {"tf": tf})
    assert (path / "tokenizer.json").exists()
    assert counted(path) == expected


def test_the_commands_open_them(tmp_path):
    """factorize, report, evaluate, distil and finetune, from vocab.txt alone."""
    path = tmp_path / "model"
    config = tf.BertConfig(**SIZES, num_labels=2, max_position_embeddings=16)
    tf.BertForSequenceClassification(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join([*WORDS, *(f"w{i}" for i in range(200))]) + "\n")
    lines = [f"w{i} the cat w{i * 7 % 200}" for i in range(24)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    rows = [f"{line},LABEL_{i % 2}" for i, line in enumerate(lines)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    small = tmp_path / "small"
    succeed("factorize", path, "--rank", 4, "--corpus", tmp_path / "texts.txt", "-o", small)
    succeed("report", path, "--corpus", tmp_path / "texts.txt")
    alike = ("--teacher", path, "--texts", tmp_path / "texts.txt")
    succeed("evaluate", small, *alike)
    succeed("evaluate", small, tmp_path / "texts.csv")
    succeed("distil", small, *alike, "--epochs", 1, "-o", tmp_path / "distilled")
    succeed("finetune", small, tmp_path / "texts.csv", "--epochs", 1, "-o", tmp_path / "tuned")
    assert (tmp_path / "tuned" / "vocab.txt").read_bytes() == (path / "vocab.txt").read_bytes()


# ---- SentencePiece


@pytest.fixture(scope="module")
def pieces():
    """A small unigram model, and a function that encodes with it."""
    library = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if text] * 20), model_writer=written, vocab_size=60,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return written.getvalue(), library.SentencePieceProcessor(model_proto=written.getvalue())


def t5(path, spm):
    config = tf.T5Config(vocab_size=ROWS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return model(path, config, {"spiece.model": spm})


def test_t5_from_spiece_model(tmp_path, pieces):
    """Its ids are those of the model, with </s> after each text."""
    spm, processor = pieces
    path = t5(tmp_path / "t5", spm)
    by_hand = Counter(id_ for text in TEXTS for id_ in [*processor.encode(text), 1])
    assert counted(path) == dict(sorted(by_hand.items())) == encoded(path)


def test_the_prior_of_a_spiece_model(tmp_path, pieces):
    """e to the power of each score, as SentencePiece itself reads it; </s> has one of 32 tokens."""
    spm, processor = pieces
    path = t5(tmp_path / "t5", spm)
    rows = len(processor) + 100  # T5 adds <extra_id_0> and on
    with open_checkpoint(path) as checkpoint:
        found = prior_of(checkpoint, rows, lambda: converted(checkpoint))
    scores = np.array([processor.get_score(i) for i in range(len(processor))])
    by_hand = np.zeros(rows)
    by_hand[: len(scores)] = np.where(scores < 0, np.exp(scores), 0)
    by_hand /= by_hand.sum()
    by_hand[1] = 1 / 32
    np.testing.assert_allclose(found.shares, by_hand / by_hand.sum(), rtol=1e-6)
    assert found.origin == "the log-probabilities of its tokens"


def test_xlm_roberta_from_sentencepiece_bpe_model(tmp_path, pieces):
    """Its ids are those of AutoTokenizer, which puts its own special tokens first."""
    path = model(tmp_path / "x", tf.XLMRobertaConfig(**SIZES), {"sentencepiece.bpe.model": pieces[0]})
    assert counted(path) == encoded(path)
    assert len(counted(path)) > 15


def test_marian_from_source_spm(tmp_path, pieces):
    """vocab.json numbers the pieces of source.spm; there is no tokenizer.json for this class."""
    spm, processor = pieces
    names = [processor.id_to_piece(i) for i in range(len(processor))][::-1]
    files = {
        "source.spm": spm,
        "target.spm": spm,
        "vocab.json": json.dumps({n: i for i, n in enumerate(names)}),
    }
    path = model(tmp_path / "marian", tf.MarianConfig(**MT), files)
    by_hand = Counter(
        names.index(p) for text in TEXTS for p in [*processor.encode(text, out_type=str), "</s>"]
    )
    assert counted(path) == dict(sorted(by_hand.items()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends sacremoses
        assert counted(path) == encoded(path)


# ---- refused


def test_row_94_no_tokenizer(tmp_path):
    """transformers would make one that knows its special tokens alone: every word would be unknown."""
    path = bert(tmp_path / "bert")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (path / "vocab.txt").unlink()
    (path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    command = ("factorize", path, "--rank", 2, "--corpus", tmp_path / "texts.txt")
    assert_refused(tmp_path, *command, code=2, says="none of tokenizer.json, vocab.txt; put")
    with pytest.raises(UsageError, match=r"none of tokenizer\.json, vocab\.txt"):
        tokenizer_in(path)
    (path / "config.json").unlink()
    assert_refused(tmp_path, *command, code=2, says=f"tokenizer.json into {path}, or give counts")


def test_row_94_half_a_tokenizer(tmp_path):
    """vocab.json without merges.txt."""
    path = gpt2(tmp_path / "gpt2")
    (path / "merges.txt").unlink()
    with pytest.raises(InputError, match="transformers cannot load it"):
        counted(path)


def test_row_94_a_library_is_missing(tmp_path, monkeypatch):
    """SentencePiece's models need two; the extra installs them."""
    path = t5(tmp_path / "t5", b"AA== 0\n")  # transformers cannot read it with them either
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(UsageError, match=r"spiece\.model needs .*protobuf; .*'embcompress\[transformers\]'"):
        counted(path)


@needs_proc
def test_row_95_tokenizers_that_would_harm(tmp_path):
    """Maps that claim gigabytes, files without end, names of other files, labels by the billion, code."""
    (tmp_path / "texts.txt").write_text("the cat\n" * 4)
    (tmp_path / "secret.txt").write_text("[UNK]\nsecret\n")
    lying = field(3, field(2, (1 << 31).to_bytes(4, "little") + b"abc"))
    words = field(1, field(1, b"a"))

    def config(**changes):
        return lambda path: (path / "config.json").write_text(
            json.dumps(json.loads((path / "config.json").read_text()) | changes)
        )

    def text(name, contents):
        return lambda path: (path / name).write_text(contents)

    def empty(path):
        with (path / "vocab.txt").open("wb") as file:
            file.truncate(1 << 40)

    def evil(path):
        (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        (path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.A", "evil.A"]}}')

    elsewhere = {"vocab": str(tmp_path / "secret.txt")}
    harms = {
        "map": (lambda path: (path / "spiece.model").write_bytes(words + lying), 3, "claims 2,147,483,648"),
        "no model": (lambda path: (path / "spiece.model").write_bytes(b"\xff" * 99), 3, "cut off or corrupt"),
        "endless": (empty, 3, "limit"),
        "elsewhere": (text("tokenizer_config.json", json.dumps(elsewhere)), 3, "vocab leads to"),
        "labels": (config(num_labels=10**9), 3, "num_labels as 1,000,000,000"),
        "not text": (lambda path: (path / "vocab.txt").write_bytes(b"\xff\xfe\x00"), 3, "cannot load it"),
        "code": (evil, 0, ""),
        "deep": (text("tokenizer_config.json", "[" * 100_000), 3, "nested too deep"),
    }  # fmt: skip
    jobs = []
    for name, (harm, *_) in harms.items():
        harm(bert(tmp_path / name))
        jobs.append(("report", tmp_path / name, "--corpus", tmp_path / "texts.txt"))
    ended = commands(tmp_path, 192 * MB, jobs, MODULES)
    for (name, (_, code, says)), end in zip(harms.items(), ended, strict=True):
        assert end.code == code, (name, end)
        assert says in end.stderr, (name, end)
    assert not (tmp_path / "ran").exists()
