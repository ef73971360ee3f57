"""The contract of every rule in the registry; rules against a scanner written out here and transformers."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.classifying import record, saved
from helpers.refusals import refused
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embcompress.checkpoint import open_checkpoint
from embcompress.data.tokenizing import (
    PADDING,
    SPLITTING,
    TOKENIZERS,
    TokenizerJson,
    Whitespace,
    Words,
    tokenizer_from_dict,
    tokenizer_of,
)
from embcompress.errors import InputError, UsageError

TEXTS = ["The cat sat.", "the cat isn't fat", "Play 2 songs by AC/DC!", "", "  ", "naïve café"]
# Letters, marks and white space of many scripts; apostrophes, underscores and short words often.
texts = st.text(st.sampled_from("aB'’_ \n.é1") | st.characters(codec="utf-8"), max_size=40)
corpora = st.lists(texts | st.lists(st.sampled_from("abcde"), max_size=30).map(" ".join), max_size=12)


@pytest.fixture(scope="session")
def instances(minilm):
    """One of each rule."""
    return {
        "words": Words.build(TEXTS),
        "whitespace": Whitespace.build(TEXTS),
        "tokenizer.json": TokenizerJson((minilm / "tokenizer.json").read_text()),
    }


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request, instances):
    return instances[request.param]


def ids_of(tokenizer, text, max_length=256):
    """The ids of one text."""
    encoded = tokenizer.encode([text], max_length)
    assert encoded.lengths.tolist() == [len(encoded.tokens)]
    return encoded.tokens.tolist()


class TestContract:
    """What classifiers rely on, for whatever joins the registry."""

    def test_name_is_its_key(self, instances):
        """The registry finds a rule under its own name, and each is tested here."""
        assert TOKENIZERS.keys() == instances.keys()
        assert {rule: TOKENIZERS[rule] for rule in SPLITTING} == SPLITTING
        for rule, tokenizer in instances.items():
            assert type(tokenizer) is TOKENIZERS[rule]
            assert tokenizer.rule == rule

    def test_ids_are_rows_of_the_vocabulary(self, tokenizer):
        """From 0 to below V, int64; the padding id is one and no text of words has it."""
        encoded = tokenizer.encode(TEXTS, 256)
        assert encoded.tokens.dtype == np.int64
        assert encoded.tokens.min() >= 0
        assert encoded.tokens.max() < len(tokenizer.vocabulary)
        assert 0 <= tokenizer.padding < len(tokenizer.vocabulary)
        assert tokenizer.padding not in encoded.tokens
        assert len(set(tokenizer.vocabulary)) == len(tokenizer.vocabulary)

    def test_every_text_has_a_token(self, tokenizer):
        """An empty one is one unknown token, since the mean of nothing is no number."""
        unknown = next(i for i, token in enumerate(tokenizer.vocabulary) if token in ("<unk>", "[UNK]"))
        for nothing in ("", " ", "\n\t\u3000"):
            assert ids_of(tokenizer, nothing) == [unknown]
        assert len(tokenizer.encode(TEXTS, 256)) == len(TEXTS)
        assert len(tokenizer.encode([], 256)) == 0

    @pytest.mark.parametrize("length", [1, 2, 3, 300])
    def test_long_texts_are_cut_off(self, tokenizer, length):
        """What is left is their beginning, as long as was asked; a limit in the file itself is off."""
        whole = ids_of(tokenizer, "the cat sat " * 100, 10_000)
        assert len(whole) == 300
        assert ids_of(tokenizer, "the cat sat " * 100, length) == whole[:length]

    @settings(deadline=None, max_examples=30)
    @given(st.lists(texts, max_size=5))
    def test_a_text_is_read_as_if_it_were_alone(self, instances, some):
        """Neither padding nor neighbours get among its ids."""
        for tokenizer in instances.values():
            together = tokenizer.encode(some, 256)
            assert together.tokens.tolist() == [i for text in some for i in ids_of(tokenizer, text)]

    def test_texts_are_counted_whole(self, tokenizer):
        """Nothing is cut off; the library's special tokens, which its model reads, are counted too."""
        text = "the cat sat " * 100
        around = tokenizer.count([""]).tokens.tolist() if tokenizer.rule == "tokenizer.json" else []
        whole = ids_of(tokenizer, text, None)
        assert whole == ids_of(tokenizer, text, 10_000)
        assert tokenizer.count([text]).tokens.tolist() == [*around[:1], *whole, *around[1:]]

    def test_it_says_what_it_is(self, tokenizer):
        """From JSON it comes back the same."""
        raw = json.loads(json.dumps(tokenizer.to_dict()))
        again = tokenizer_from_dict(raw)
        assert type(again) is type(tokenizer)
        assert again.vocabulary == tokenizer.vocabulary
        assert again.padding == tokenizer.padding
        assert again.encode(TEXTS, 7).tokens.tolist() == tokenizer.encode(TEXTS, 7).tokens.tolist()
        assert again.to_dict() == raw


def scanned(text):
    """What Words promises, one character after the other."""
    tokens, rest = [], [*unicodedata.normalize("NFC", text).lower()]

    def word():
        run = ""
        while rest and rest[0].isalnum():
            run += rest.pop(0)
        return run

    while rest:
        if rest[0].isspace():
            rest.pop(0)
        elif not rest[0].isalnum():
            tokens.append(rest.pop(0))
        else:
            token = word()
            while len(rest) > 1 and rest[0] in "'’" and rest[1].isalnum():
                token += rest.pop(0) + word()
            tokens.append(token)
    return tokens


class TestWords:
    """Lower-cased words with their apostrophes, and single punctuation marks."""

    @settings(deadline=None, max_examples=300)
    @given(texts)
    @example("it''s 'quoted' rock'n'roll dogs' _a_ x'_y l’été İstanbul ß\x1c\u200b")
    def test_it_is_the_scanner(self, text):
        """Whatever the text; but for white space, no character of its composed form is lost."""
        assert Words.split(text) == scanned(text)
        composed = unicodedata.normalize("NFC", text).lower()
        assert "".join(Words.split(text)) == "".join(composed.split())
        assert Words.split("cafe\u0301") == ["caf\u00e9"]

    def test_by_example(self):
        """As the class says."""
        assert Words.split("Don't STOP: 'rock’n'roll', é!") == [
            *("don't", "stop", ":", "'", "rock’n'roll", "'", ",", "é", "!"),
        ]
        assert Words.split("snake_case ... $5.20") == [
            *("snake", "_", "case", ".", ".", ".", "$", "5", ".", "20")
        ]

    def test_whitespace_keeps_case_and_marks(self):
        """It is for texts that are tokenized already."""
        assert Whitespace.split(" Don't\tSTOP:\u3000now \n") == ["Don't", "STOP:", "now"]


class TestBuilding:
    """A vocabulary from texts."""

    @settings(deadline=None)
    @given(corpora, st.integers(1, 4), st.none() | st.integers(0, 6), st.sampled_from([*SPLITTING.values()]))
    def test_frequent_tokens_come_first(self, corpus, min_count, max_tokens, rule):
        """Then in the order of their characters; rare ones and those past the limit are left out."""
        counts = Counter()
        for text in corpus:
            counts.update(rule.split(text))
        built = rule.build(iter(corpus), min_count=min_count, max_tokens=max_tokens)
        padding, unknown, *tokens = built.vocabulary
        assert (padding, unknown, built.padding) == ("<pad>", "<unk>", 0)
        assert tokens == sorted(tokens, key=lambda token: (-counts[token], token))
        enough = {token for token, n in counts.items() if n >= min_count} - {"<pad>", "<unk>"}
        assert set(tokens) <= enough
        assert len(tokens) == (len(enough) if max_tokens is None else min(len(enough), max_tokens))
        left_out = enough - set(tokens)
        assert all(counts[token] <= counts[tokens[-1]] for token in left_out if tokens)

    def test_known_tokens_have_their_ids_and_others_are_unknown(self):
        """Looked up after the rule has split."""
        built = Words.build(["b b a", "b c"], max_tokens=2)
        assert built.vocabulary == (PADDING, "<unk>", "b", "a")
        assert ids_of(built, "A b c d") == [3, 2, 1, 1]

    def test_reserved_names_in_texts_are_the_reserved_tokens(self):
        """As tokenized texts have them: they get no second row."""
        built = Whitespace.build(["<unk> <unk> <pad> a"])
        assert built.vocabulary == ("<pad>", "<unk>", "a")
        assert ids_of(built, "a <unk> <pad>") == [2, 1, 0]

    def test_reserved_names_in_texts_do_not_count(self):
        """The limit is for tokens besides them."""
        assert Whitespace.build(["<unk> <unk> a a b"], max_tokens=2).vocabulary == (
            "<pad>",
            "<unk>",
            "a",
            "b",
        )

    def test_no_texts_make_a_vocabulary_of_two(self):
        """Every token is unknown then."""
        assert ids_of(Words.build([]), "a b") == [1, 1]

    @pytest.mark.parametrize(
        "raw",
        [
            {},
            {"rule": "words"},
            {"rule": "bpe", "vocabulary": ["<pad>", "<unk>"]},
            {"rule": [], "vocabulary": ["<pad>", "<unk>"]},
            {"rule": "words", "vocabulary": "<pad><unk>"},
            {"rule": "words", "vocabulary": ["<pad>", "<unk>", 3]},
            {"rule": "words", "vocabulary": ["<pad>"]},
            {"rule": "words", "vocabulary": ["<unk>", "<pad>"]},
            {"rule": "words", "vocabulary": ["<pad>", "<unk>", "a", "a"]},
            {"rule": "tokenizer.json"},
            {"rule": "tokenizer.json", "json": {"version": "1.0"}},
        ],
        ids=json.dumps,
    )
    def test_what_is_none_of_ours_is_told(self, raw):
        """By one of the three errors that the reader of a record expects."""
        with pytest.raises((ValueError, KeyError, TypeError)):
            tokenizer_from_dict(raw)


def word_level(vocabulary, unknown="[UNK]", added=()):
    """A tokenizer.json that looks up words between spaces."""
    parts = ("truncation", "padding", "normalizer", "post_processor", "decoder")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return json.dumps({
        "version": "1.0",
        **dict.fromkeys(parts),
        "added_tokens": [{"id": number, "content": token, **flags} for token, number in added],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    })  # fmt: skip


@pytest.fixture(scope="session")
def bert(minilm):
    """The older tokenizer of transformers: Python alone, no code of the library tokenizers."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    return BertTokenizerLegacy(str(minilm / "vocab.txt"))


class TestTokenizerJson:
    """A file of the Hugging Face library."""

    @settings(deadline=None, max_examples=150)
    @given(st.text(st.sampled_from("aeinst 'é-.") | st.characters(max_codepoint=0x17F), max_size=30))
    @example("unaffable embeddings — naïveté 漢字 isn't")
    def test_real_word_pieces(self, instances, bert, text):
        """MiniLM's ids are those of BERT's own rules, without [CLS] and [SEP], never cut or filled up."""
        expected = bert.convert_tokens_to_ids(bert.tokenize(text)) or [bert.unk_token_id]
        assert ids_of(instances["tokenizer.json"], text) == expected

    def test_a_whole_directory_as_transformers_reads_it(self, instances, minilm):
        """The same ids as AutoTokenizer for long and short texts together."""
        from transformers import AutoTokenizer

        auto = AutoTokenizer.from_pretrained(minilm)
        some = ["word " * 500, "one two", "Hello, World! #42 \U0001f600"]
        expected = auto(some, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        found = instances["tokenizer.json"].encode(some, 10_000)
        assert found.lengths.tolist() == [len(row) for row in expected]
        assert found.tokens.tolist() == [token for row in expected for token in row]
        counted = instances["tokenizer.json"].count(some).tokens.tolist()
        assert counted == [token for row in auto(some, truncation=False)["input_ids"] for token in row]
        assert instances["tokenizer.json"].vocabulary == tuple(auto.convert_ids_to_tokens(range(30522)))
        assert instances["tokenizer.json"].padding == auto.pad_token_id == 0

    @pytest.mark.parametrize("padding", ["[PAD]", "<pad>", "<|pad|>"])
    def test_padding_and_unknown_are_found_by_their_names(self, padding):
        """Wherever they stand; without an unknown token an empty text is padding."""
        found = TokenizerJson(word_level({"a": 0, "b": 1, padding: 2, "[UNK]": 3}))
        assert (found.padding, found.vocabulary) == (2, ("a", "b", padding, "[UNK]"))
        assert ids_of(found, "b x a") == [1, 3, 0]
        assert ids_of(found, "") == [3]
        assert ids_of(TokenizerJson(word_level({"a": 0, padding: 1}, unknown="x")), "") == [1]

    def test_ids_may_have_gaps_and_added_tokens(self):
        """There is a row for every id up to the highest, whatever it is called."""
        gaps = TokenizerJson(word_level({"a": 0, "[PAD]": 6, "[UNK]": 1}))
        assert (len(gaps.vocabulary), gaps.padding) == (7, 6)
        assert (gaps.vocabulary[0], gaps.vocabulary[6]) == ("a", "[PAD]")
        assert len(set(gaps.vocabulary)) == 7
        added = TokenizerJson(word_level({"a": 0, "[UNK]": 1}, added=[("[PAD]", 2), ("<new>", 3)]))
        assert (added.vocabulary, added.padding) == (("a", "[UNK]", "[PAD]", "<new>"), 2)
        assert ids_of(added, "a <new> b") == [0, 3, 1]

    def test_a_tokenizer_without_padding_is_refused(self):
        """Where texts must be filled up; its vocabulary can be read all the same."""
        found = TokenizerJson(word_level({"a": 0, "[UNK]": 1}))
        assert found.vocabulary == ("a", "[UNK]")
        assert found.count(["a b a"]).tokens.tolist() == [0, 1, 0]
        with refused(InputError, "padding", "--tokenizer"):
            _ = found.padding

    def test_ids_far_beyond_the_tokens_are_refused(self):
        """A table has a row for every id: a small file must not ask for one of gigabytes."""
        with refused(InputError, "3 tokens, ids up to 100,000"):
            TokenizerJson(word_level({"[PAD]": 0, "[UNK]": 1, "a": 100_000}))
        assert len(TokenizerJson(word_level({"[PAD]": 0, "[UNK]": 1, "a": 2000})).vocabulary) == 2001

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": "1.0"}', word_level({"a": -1})])
    def test_what_is_no_tokenizer_is_refused(self, text):
        """In one line, whatever the library says of it."""
        with refused(InputError, "tokenizer.json"):
            TokenizerJson(text)

    def test_without_the_library_it_says_what_to_install(self, monkeypatch):
        """It is an extra."""
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with refused(UsageError, "'embcompress[tokenizers]'"):
            TokenizerJson(word_level({"a": 0, "[PAD]": 1}))


class TestOfCheckpoints:
    """The tokenizer that a checkpoint brings."""

    def test_it_is_that_of_its_record_or_beside_it(self, minilm, tmp_path):
        """A classifier has its own; a directory, and a file in one, has tokenizer.json."""
        for path in (minilm, minilm / "model.safetensors"):
            with open_checkpoint(path) as checkpoint:
                assert type(tokenizer_of(checkpoint)) is TokenizerJson
        path, _ = saved(tmp_path, record("dan"))
        (tmp_path / "tokenizer.json").write_text("{")
        with open_checkpoint(path) as checkpoint:
            assert tokenizer_of(checkpoint).vocabulary == record("dan").tokenizer.vocabulary

    def test_there_may_be_none(self, tmp_path):
        """``pretrained.tokenizer`` looks further."""
        torch.save({"embedding.weight": torch.zeros(3, 2)}, tmp_path / "model.pt")
        with open_checkpoint(tmp_path / "model.pt") as checkpoint:
            assert tokenizer_of(checkpoint) is None

    @pytest.mark.parametrize("raw", [{}, {"tokenizer": None}, {"tokenizer": {"rule": "bpe"}}])
    def test_a_broken_record_is_refused(self, tmp_path, raw):
        """Though a file beside it would do: the record is what the classifier was trained with."""
        (tmp_path / "tokenizer.json").write_text(word_level({"[PAD]": 0}))
        torch.save({"state_dict": {"a": torch.zeros(1)}, "classifier": raw}, tmp_path / "model.pt")
        with (
            open_checkpoint(tmp_path / "model.pt") as checkpoint,
            refused(InputError, "model.pt", "tokenizer"),
        ):
            tokenizer_of(checkpoint)

    def test_a_file_of_other_bytes_is_refused(self, tmp_path):
        """As a tokenizer.json that is none."""
        torch.save({"embedding.weight": torch.zeros(3, 2)}, tmp_path / "model.pt")
        (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{")
        with open_checkpoint(tmp_path / "model.pt") as checkpoint, pytest.raises(InputError):
            tokenizer_of(checkpoint)
