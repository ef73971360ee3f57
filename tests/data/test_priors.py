"""Priors of tokens: every kind of vocabulary, made by hand, against shares computed by hand.

By Zipf's law the token of rank r has 1/(r + 2.7) of all, before they are made to add up to 1.
"""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import fasttext_models, gensim_files
from helpers.static_models import save_static
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.data.priors import Prior, prior_of
from embcompress.data.shares import from_merges, from_order, from_pieces, from_scores
from embcompress.errors import InputError

WORDS = ["the", "of", "cat", "and", "dog", "bee", "ant", "zoo", "emu", "yak", "cow", "pig"]


def zipf(rank):
    return float(1 / (rank + Fraction(27, 10)))


def model(folder, vocabulary=None, *, rows=None, added=(), processor=None, name="tokenizer.json", **fields):
    """A directory with a table, and a tokenizer.json with this model or a vocab.txt."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    rows = len(vocabulary or ()) if rows is None else rows
    save_file({"embedding.weight": np.ones((rows, 2), np.float32)}, folder / "model.safetensors")
    if name == "vocab.txt":
        (folder / name).write_text("\n".join(vocabulary))
    elif vocabulary is not None:
        added = [{"id": i, "content": content, "special": True} for i, content in added]
        parsed = {
            "added_tokens": added,
            "post_processor": processor,
            "model": {"vocab": vocabulary, **fields},
        }
        (folder / name).write_text(json.dumps(parsed))
    return folder


def prior(path, rows):
    with open_checkpoint(path) as checkpoint:
        return prior_of(checkpoint, rows)


def ids(tokens):
    return {token: row for row, token in enumerate(tokens)}


# ---- the rules


def test_a_unigram_model_holds_logarithms():
    """Scores of 0 are those of control tokens; anything above 0, or no number, says nothing."""
    found = from_scores(np.array([0, math.log(0.5), math.log(0.2), 1, np.nan, -np.inf, math.log(0.05)]))
    np.testing.assert_allclose(found / found.sum(), np.array([0, 0.5, 0.2, 0, 0, 0, 0.05]) / 0.75)
    assert not from_scores(np.zeros(3)).any()
    assert np.isfinite(from_scores(np.array([-1e300, -1e4, -9e3]))).all()


def test_words_in_order_follow_zipf():
    """Names in brackets, and rows without a token, are no words and take no rank."""
    found = from_order(["<unk>", "the", None, "of", "[unused3]", "cat"])
    np.testing.assert_allclose(found, [0, zipf(1), 0, zipf(2), 0, zipf(3)])


def test_an_alphabetical_order_says_nothing():
    assert not from_order(sorted(WORDS)).any()
    assert from_order(WORDS).all()
    assert from_order(["a", "b"]).all(), "two words are in order by chance"


def test_an_accidental_order_says_nothing():
    """In the order of frequency later words are longer; shuffled they are not. A few words cannot tell."""
    words = [f"{'xyz'[rank % 3] * int(2 + np.log2(rank))}{rank}" for rank in range(1, 1001)]
    shuffled = [words[place] for place in np.random.default_rng(0).permutation(len(words))]
    for rule in (from_order, from_pieces):
        assert rule(words).all()
        assert not rule(shuffled).any()
        assert not rule(words[::-1]).any()
        assert rule(shuffled[:199]).all()


def test_words_of_equal_counts_in_alphabetical_order():
    """By count and then by name, as the vocabulary of a classifier: nearly sorted, but not at its head."""
    draw = np.random.default_rng(0)
    counts = {f"w{n:04}": count for n, count in enumerate(draw.zipf(1.5, 3000))}
    tokens = sorted(counts, key=lambda token: (-counts[token], token))
    assert np.mean([a <= b for a, b in itertools.pairwise(tokens)]) > 0.9
    np.testing.assert_allclose(from_order(tokens), [zipf(rank) for rank in range(1, 3001)])
    assert not from_order(sorted(tokens)).any()


def test_a_piece_has_its_rank_and_a_character_its_block():
    """The alphabet takes no ranks. Each ASCII character has the same part of what ASCII pieces have."""
    ascii_run, greek_run = list("!,.abcdefgh"), list("αβγδεζηθ")
    tokens = ["[PAD]", *ascii_run, *greek_run, "the", "##s", "of", *["##" + c for c in "!,.:;?^~"], "ωω"]
    found = dict(zip(tokens, from_pieces(tokens), strict=True))
    rank = {token: zipf(place) for place, token in enumerate(["the", "##s", "of", "ωω"], 1)}
    latin = rank["the"] + rank["##s"] + rank["of"]
    assert found["[PAD]"] == 0
    for token, share in rank.items():
        assert found[token] == pytest.approx(share)
    for token in ascii_run:
        assert found[token] == pytest.approx(max(0.2 * latin / len(ascii_run), rank["ωω"]))
    for token in greek_run:
        assert found[token] == pytest.approx(rank["ωω"]), "the least, since that is more than its part"
    assert found["##~"] == pytest.approx(rank["ωω"])


def test_ascii_characters_have_more_than_the_least():
    """With many pieces the part of a block is more than the least share, or the test above shows little."""
    tokens = [*"!,.abcdefgh", *[f"w{i % 7}{i}" for i in range(500)]]
    found = from_pieces(tokens)
    mass = sum(zipf(rank) for rank in range(1, 501))
    np.testing.assert_allclose(found[:11], 0.2 * mass / 11)
    assert found[0] > 5 * found[-1]


def test_merges_take_from_their_parts():
    """``in`` (rank 1) loses what ``ing`` (rank 2) takes, and keeps 0.3 at least; ``ing`` keeps all."""
    tokens = ["<s>", "i", "n", "g", "ing", "in", "nn"]
    found = from_merges(tokens, [("i", "n"), ("in", "g"), ("n", "n"), ("i", "x"), ("n", "n")])
    first, second, third = zipf(1), zipf(2), zipf(3)
    assert found[5] == pytest.approx(max(first - second, 0.3 * first))
    assert found[4] == pytest.approx(second)
    assert found[6] == pytest.approx(third)
    assert found[0] == 0
    mass = found[4:].sum()
    np.testing.assert_allclose(found[1:4], max(0.2 * mass / 3, found[4:].min()))


def test_bytes_of_byte_level_bpe_do_not_take_the_place_of_blanks():
    """``Ġ`` marks the begin of a word: it gives nothing to the bytes of its block."""
    tokens = [*"!abcdt", "Ġ", "ģ", "Ģ", "Ġt", "Ġa", "ab"]
    found = dict(zip(tokens, from_merges(tokens, [("Ġ", "t"), ("Ġ", "a"), ("a", "b")]), strict=True))
    assert found["ģ"] == found["Ģ"] == pytest.approx(min(found["Ġt"], found["Ġa"], found["ab"]))


def test_a_blank_is_of_the_block_of_ascii():
    letters = "abcdefghijklmnop"
    merges = [(a, b) for a in letters for b in letters]
    tokens = [*letters, "Ġ", "ģ", *[a + b for a, b in merges]]
    found = dict(zip(tokens, from_merges(tokens, merges), strict=True))
    assert found["Ġ"] == found["a"] > 2 * found["ģ"]


@given(st.lists(st.text("abcde[]<>#Ġ", min_size=1, max_size=4), min_size=1, max_size=60, unique=True))
def test_shares_are_finite_and_fall_with_the_rank(tokens):
    by_order, by_piece = from_order(tokens), from_pieces(tokens)
    merges = [(token[:i], token[i:]) for token in tokens for i in range(1, len(token))]
    for found in (by_order, by_piece, from_merges(tokens, merges)):
        assert np.isfinite(found).all()
        assert (found >= 0).all()
    ranked = by_order[by_order > 0]
    assert (np.diff(ranked) < 0).all()


# ---- the vocabularies


def test_word_pieces_stand_between_the_tokens_of_their_template(tmp_path):
    """[CLS] and [SEP] are in every text, each as one of 32 tokens; [MASK] and padding rows are in none."""
    tokens = ["[PAD]", "[unused0]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "of", "cat"]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {}}, {"SpecialToken": {"id": "[SEP]"}}],
    }
    added = [(2, "[CLS]"), (3, "[SEP]"), (4, "[MASK]")]
    found = prior(model(tmp_path / "m", ids(tokens), rows=12, added=added, processor=template), 12)
    ranked = np.array([zipf(rank) for rank in range(1, 5)])
    whole = np.array([0, 0, 1 / 32, 1 / 32, 0, *ranked / ranked.sum(), 0, 0, 0]) / (1 + 2 / 32)
    np.testing.assert_allclose(found.shares, whole)
    assert found.origin == "the order of its tokens"
    bare = prior(model(tmp_path / "v", tokens, name="vocab.txt"), 9)
    np.testing.assert_allclose(bare.shares, whole[:9], err_msg="vocab.txt alone is that of BERT")


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]},
        {
            "type": "Sequence",
            "processors": [{"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}],
        },
    ],
)
@pytest.mark.parametrize("merges", [["i n", "in g"], [["i", "n"], ["in", "g"]]])
def test_merges_of_both_spellings(tmp_path, processor, merges):
    tokens = ["<s>", "</s>", "i", "n", "g", "in", "ing"]
    found = prior(model(tmp_path / "m", ids(tokens), merges=merges, processor=processor), 7)
    assert found.origin == "the order of its merges"
    np.testing.assert_allclose(found.shares[:2] * (1 + 2 / 32), 1 / 32)
    assert found.shares[6] / found.shares[5] == pytest.approx(zipf(2) / max(zipf(1) - zipf(2), 0.3 * zipf(1)))


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_tokens_of_chats_are_in_every_text(tmp_path, place):
    """They are added tokens, of which merges say nothing; so are those that begin and end texts."""
    tokens = ["i", "n", "g", "in", "ing", "<|end|>", "<|bos|>", "<|im_start|>", "<|pad|>"]
    added = [*enumerate(tokens)][5:]
    folder = model(tmp_path / "m", ids(tokens), added=added, merges=["i n", "in g"])
    template = "{% for m in messages %}<|im_start|>{{ m.role if m < n else '' }}<|absent|>{% endfor %}"
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": "<|bos|>"}
    if place == "chat_template.jinja":
        (folder / place).write_text(template)
    else:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = prior(folder, 9)
    np.testing.assert_allclose(found.shares[5:] * (1 + 3 / 32), [1 / 32, 1 / 32, 1 / 32, 0])


def test_log_probabilities_without_added_tokens(tmp_path):
    """An added token has no probability, whatever score stands in its place."""
    vocabulary = [["<unk>", 0.0], ["▁the", math.log(0.6)], ["s", math.log(0.2)], ["<x>", math.log(0.9)]]
    found = prior(model(tmp_path / "m", vocabulary, rows=6, added=[(3, "<x>"), (4, "<y>")]), 6)
    np.testing.assert_allclose(found.shares, [0, 0.75, 0.25, 0, 0, 0])
    assert found.origin == "the log-probabilities of its tokens"


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    broken = model(tmp_path / "m", [["a", 0.0], ["b", "x"]])
    with pytest.raises(InputError, match="scores that are no numbers"):
        prior(broken, 2)


def test_files_without_a_vocabulary_have_no_prior(tmp_path):
    assert prior(model(tmp_path / "m", rows=4), 4) is None
    assert prior(model(tmp_path / "a", ids(sorted(WORDS))), 12) is None, "alphabetical"


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="the table has 11 rows"):
        prior(model(tmp_path / "m", ids(WORDS), rows=11), 11)


def test_word_vectors_stand_in_order(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("".join(f"{word} {i}.5 1.0\n" for i, word in enumerate(WORDS)))
    found = prior(path, 12)
    ranked = np.array([zipf(rank) for rank in range(1, 13)])
    np.testing.assert_allclose(found.shares, ranked / ranked.sum())
    assert found.origin == "the order of its words"


def test_gensim_holds_counts(tmp_path):
    """Counts are taken as they are; n, n - 1, ..., 1 is what gensim makes up where it has none."""
    matrix = np.ones((3, 2), np.float32)
    for name, counts in (("real", [50, 9, 1]), ("made-up", [3, 2, 1])):
        held = gensim_files.attributes(["a", "b", "c"], matrix, expandos={"count": np.array(counts)})
        gensim_files.save(tmp_path / f"{name}.kv", "KeyedVectors", held)
    np.testing.assert_allclose(prior(tmp_path / "real.kv", 3).shares, np.array([50, 9, 1]) / 60)
    assert prior(tmp_path / "made-up.kv", 3).origin == "the order of its words"


def test_fasttext_counts_go_to_ngrams_too(tmp_path):
    """A word's n-grams are read whenever the word is; the end of a sentence is in no text."""
    made = fasttext_models.model(
        ["abc", "xy", "</s>"], np.ones((8, 2), np.float32), buckets=5, minn=3, maxn=3, counts=(100, 30, 500)
    )
    (tmp_path / "m.bin").write_bytes(made.bytes())
    counts = np.array([100.0, 30, 0, 0, 0, 0, 0, 0])
    for word, count in (("abc", 100), ("xy", 30)):
        for ngram in fasttext_models.ngrams(word, 3, 3):
            counts[3 + fasttext_models.bucket(ngram, 5)] += count
    found = prior(tmp_path / "m.bin", 8)
    np.testing.assert_allclose(found.shares, counts / counts.sum())
    assert counts[3:].sum() > 130


def test_shares_of_a_quantized_vocabulary_are_those_of_its_rows(tmp_path):
    """model2vec lets tokens share rows; it reads no token around a text."""
    save_static(tmp_path / "model", "quantized vocabulary")
    mapping = load_file(tmp_path / "model/model.safetensors")["mapping"]
    rows = int(mapping.max()) + 1
    file = tmp_path / "model/tokenizer.json"
    parsed = json.loads(file.read_text())
    names = sorted(parsed["model"]["vocab"], reverse=True)
    file.write_text(
        json.dumps(parsed | {"added_tokens": [], "model": parsed["model"] | {"vocab": ids(names)}})
    )
    shares = np.bincount(mapping, from_order(names), minlength=rows)
    assert rows < len(names)
    np.testing.assert_allclose(prior(tmp_path / "model", rows).shares, shares / shares.sum())


# ---- mixing


def test_counts_are_mixed_with_the_prior():
    """To 100 tokens counted come 1,000 of the prior and 30 more, and all are scaled to a million."""
    found = Prior(np.array([0.5, 0.5, 0]), "made up")
    np.testing.assert_allclose(found.mixed(np.array([0.0, 90, 10])), np.array([515, 605, 10]) * 1e6 / 1130)
    np.testing.assert_allclose(found.mixed(None), [5e5, 5e5, 0])
    np.testing.assert_allclose(found.mixed(np.zeros(3)), [5e5, 5e5, 0])
    np.testing.assert_allclose(
        found.mixed(np.array([0, 1e15, 0])), [0.15e6 / 1.3, 1.15e6 / 1.3, 0], rtol=1e-9
    )


# ---- files that are not what they should be

ODD = [
    None,
    0,
    -1,
    10**400,
    float("nan"),
    "",
    "x",
    [],
    {},
    [[]],
    [["a"]],
    [["a", "b", "c"]],
    {"a": "b"},
    [None],
]


@pytest.mark.parametrize(
    "place", ["merges", "processors", "single", "cls", "SpecialToken", "id", "score", "token"]
)
def test_odd_tokenizers_are_refused_or_give_finite_shares(tmp_path, place):
    """Whatever stands where something else belongs, it is one error or a prior."""
    tokens = ["<s>", "a", "b", "ab"]
    for number, odd in enumerate(ODD):
        merges, vocabulary = odd if place == "merges" else [["a", "b"]], ids(tokens)
        if place in ("score", "token"):
            vocabulary = [[t, -1.0] for t in tokens[:3]] + [["ab", odd] if place == "score" else [odd, -1.0]]
        special = {"SpecialToken": odd if place == "SpecialToken" else {"id": odd}}
        processor = {"single": [special] if place in ("SpecialToken", "id") else odd}
        if place in ("processors", "cls"):
            processor = {place: odd}
        folder = model(tmp_path / str(number), vocabulary, rows=4, processor=processor, merges=merges)
        try:
            found = prior(folder, 4)
        except InputError:
            continue
        if found is not None:
            assert np.isfinite(found.shares).all()
            assert found.shares.sum() == pytest.approx(1)


def test_a_deep_template_does_not_recurse(tmp_path):
    """JSON is read to any depth that Python's reader allows."""
    processor = {"cls": ["<s>", 0]}
    for _ in range(200):
        processor = {"type": "Sequence", "processors": [processor]}
    found = prior(model(tmp_path / "m", ids(["<s>", "a", "b"]), processor=processor), 3)
    assert found.shares[0] == pytest.approx(1 / 33)


def test_a_classifier_of_ours_has_its_words_in_order(tmp_path):
    """``train`` numbers words by how often they occur; padding and the unknown token come first."""
    texts = [f"{'b ' * i}{'a ' * (i // 2)}c" for i in range(2, 12)]
    lines = "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts))
    (tmp_path / "t.csv").write_text(f"text,label\n{lines}")
    out = tmp_path / "model.pt"
    new = embcompress.NewClassifier(arch="dan", hidden=(2,), dimension=4)
    embcompress.train(tmp_path / "t.csv", output=out, new=new, recipe=embcompress.Recipe(epochs=1))
    found = prior(out, 5)
    ranked = np.array([zipf(rank) for rank in (1, 2, 3)])
    np.testing.assert_allclose(found.shares, [0, 0, *ranked / ranked.sum()])
