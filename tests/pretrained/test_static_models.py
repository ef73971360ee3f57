"""Static models: token counts, and comparison with the original. Rows 90 and 92 of BAD_INPUTS."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.checkpoints import assert_refused, succeed
from helpers.static_models import KINDS, WORDS, D, V, encoded, matrix, save_static, texts
from safetensors.numpy import load_file, save_file

from embcompress.checkpoint import open_checkpoint
from embcompress.data.static_tokens import static_counting, static_encoding

st = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.usefixtures("registered")

LINES = texts(40)


def cosines(a, b):
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("method", ["svd", "pq"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_compares_the_vectors_of_sentence_transformers(kind, method, tmp_path):
    """The mean cosine and the neighbours are those of the vectors that the library computes."""
    save_static(tmp_path / "original", kind)
    words = ("--method", method, *(("--rank", 6) if method == "svd" else ("--ratio", 0.85)))
    succeed("factorize", tmp_path / "original", *words, "-o", tmp_path / "small")
    (tmp_path / "t.txt").write_text("\n".join(LINES))
    pair = (tmp_path / "small", "--teacher", tmp_path / "original")
    shown = json.loads(succeed("evaluate", *pair, "--texts", tmp_path / "t.txt", "--json").stdout)
    mine, theirs = (encoded(tmp_path / folder, LINES) for folder in ("small", "original"))
    assert shown["cosine"] == pytest.approx(float(cosines(mine, theirs).mean()), abs=1e-6)
    assert shown["cosine"] < 0.9999
    nearest = [np.argsort(-(n @ n.T) + 9 * np.eye(len(n)), axis=1)[:, :5] for n in map(_unit, (mine, theirs))]
    kept = np.mean([len({*a} & {*b}) / 5 for a, b in zip(*nearest, strict=True)])
    assert shown["neighbours"] == pytest.approx(kept)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_special_tokens_are_not_counted(tmp_path):
    """A static model never reads them, whatever tokenizer.json would add."""
    from tokenizers import Tokenizer, processors

    save_static(tmp_path / "model")
    file = str(tmp_path / "model/tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = processors.TemplateProcessing("[PAD] $A [PAD]", special_tokens=[("[PAD]", 0)])
    tokenizer.save(file)
    with open_checkpoint(tmp_path / "model") as model:
        found = static_encoding(model)(["w1 w2", "", "w1"])
    assert found.tokens.tolist() == [WORDS.index(word) for word in ("w1", "w2", "w1")]
    assert found.lengths.tolist() == [2, 0, 1]


def test_counts_of_a_quantized_vocabulary_are_those_of_its_rows(tmp_path):
    save_static(tmp_path / "model", "quantized vocabulary")
    mapping = load_file(tmp_path / "model/model.safetensors")["mapping"]
    with open_checkpoint(tmp_path / "model") as model:
        found = static_counting(model)(["w1 w2 w1"])
    assert found.tokens.tolist() == [mapping[WORDS.index(word)] for word in ("w1", "w2", "w1")]


@pytest.mark.parametrize("lower", [False, True])
def test_words_are_found_as_the_library_finds_them(lower, tmp_path):
    """WhitespaceTokenizer itself is the oracle, with words in every state that it distinguishes."""
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    words = ["pad", "a", "Berlin", "berlin", "U.S.", "u.s", "the", "--", "(x)", "x", "it's", "É", "1,000"]
    tokenizer = WhitespaceTokenizer(words, stop_words=["the", "!", "berlin!"], do_lower_case=lower)
    modules = [WordEmbeddings(tokenizer, matrix(len(words))), Pooling(D)]
    st.SentenceTransformer(modules=modules, device="cpu").save(
        str(tmp_path / "model"), create_model_card=False
    )
    lines = [
        "The the U.S. u.s. (x) x, X! Berlin BERLIN! berlin! -- ---",
        "",
        "!",
        "é É A 1,000. \u00a0 it's \"it's\"",
    ]
    with open_checkpoint(tmp_path / "model") as model:
        found = static_encoding(model)(lines)
    expected = [tokenizer.tokenize(line) for line in lines]
    assert found.lengths.tolist() == [*map(len, expected)]
    assert found.tokens.tolist() == [row for rows in expected for row in rows]
    (tmp_path / "counts.csv").write_text("token,count\nBerlin,5\nx,2\n")
    (tmp_path / "texts.txt").write_text("Berlin Berlin Berlin Berlin Berlin x x\n")
    options = (("--weights", "counts.csv"), ("--corpus", "texts.txt"))
    plans = [
        succeed(
            "factorize", tmp_path / "model", "--rank", 2, option, tmp_path / file, "--dry-run", "--json"
        ).stdout
        for option, file in options
    ]
    errors = [json.loads(plan)["tables"][0]["predicted_error"] for plan in plans]
    assert (errors[0] == errors[1]) == (not lower)


def test_row_90_a_tokenizer_of_phrases_cannot_count(tmp_path):
    """It splits texts with NLTK; counts can be given instead."""
    save_static(tmp_path / "model", "words")
    (tmp_path / "model/whitespacetokenizer_config.json").rename(
        tmp_path / "model/phrasetokenizer_config.json"
    )
    (tmp_path / "t.txt").write_text("\n".join(LINES))
    np.save(tmp_path / "c.npy", np.ones(V))
    words = ("factorize", tmp_path / "model", "--rank", 4, "-o", tmp_path / "small")
    assert_refused(
        tmp_path, *words, "--corpus", tmp_path / "t.txt", code=2, says="phrasetokenizer_config.json --weights"
    )
    succeed(*words, "--weights", tmp_path / "c.npy")


def assert_corpus_refused(folder, says):
    """Tokens of texts cannot be counted with the model in ``folder``."""
    (folder / "t.txt").write_text("\n".join(LINES))
    places = (folder / "model", "-o", folder / "small", "--corpus", folder / "t.txt")
    assert_refused(folder, "factorize", *places, "--rank", 4, code=3, says=says)


@pytest.mark.parametrize("change", [{"vocab": "abc"}, {"vocab": [1, 2]}, {"stop_words": {"a": 1}}])
def test_row_90_a_broken_tokenizer_of_words(change, tmp_path):
    """It holds no lists of texts."""
    save_static(tmp_path / "model", "words")
    file = tmp_path / "model/whitespacetokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert_corpus_refused(tmp_path, says=f"whitespacetokenizer_config.json {min(change)}")


@pytest.mark.parametrize("row", [V, -1])
def test_row_90_a_list_of_rows_that_does_not_fit(row, tmp_path):
    """A text has a token that the list does not have, or has no row for."""
    save_static(tmp_path / "model", "quantized vocabulary")
    file = tmp_path / "model/model.safetensors"
    mapping = np.full(V, -1, np.int32) if row < 0 else np.zeros(3, np.int32)
    save_file({**load_file(file), "mapping": mapping}, file)
    assert_corpus_refused(tmp_path, says="mapping")


def test_row_92_what_has_no_static_counterpart_is_refused(tmp_path, shelf):
    """A static model is not compared with a transformer, and distil has nothing to train but its table."""
    save_static(tmp_path / "original")
    small = tmp_path / "small"
    succeed("factorize", tmp_path / "original", "--method", "int8", "--ratio", 0.5, "-o", small)
    (tmp_path / "t.txt").write_text("\n".join(LINES))
    texts_of = ("--texts", tmp_path / "t.txt")
    bert = next(path for path in sorted(shelf.iterdir()) if (path / "config.json").exists())
    assert_refused(tmp_path, "evaluate", small, "--teacher", bert, *texts_of, code=2, says=f"{V}")
    words = ("distil", small, "--teacher", tmp_path / "original", *texts_of)
    assert_refused(tmp_path, *words, code=2, says="--corpus")
