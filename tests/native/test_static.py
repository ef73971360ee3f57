"""Static models whose factors sentence-transformers reads by itself, and what is said of model2vec."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors
from helpers.checkpoints import succeed
from helpers.static_models import (
    KINDS,
    WORDS,
    D,
    V,
    encoded,
    matrix,
    means,
    save_static,
    texts,
    unwrap_static_modules,
)
from safetensors.numpy import load_file

pytest.importorskip("sentence_transformers")

RANK = 7
TEXTS = texts()


@pytest.fixture(autouse=True)
def _stock():
    """sentence-transformers as it is without embcompress."""
    unwrap_static_modules()


def low_rank(rows):
    """The truncated SVD by NumPy."""
    u, s, vt = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    return u[:, :RANK] * s[:RANK] @ vt[:RANK]


def rows_after(folder, *command):
    """What the command writes, and the tables in it."""
    succeed(*command, "-o", folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "left"),
    [("static", "embeddings"), ("words", "emb_layer.weight"), ("model2vec", "embedding.weight")],
)
def test_svd_is_read_by_the_library_alone(kind, left, tmp_path):
    """And model2vec, which knows no projection, does not look for the left factor under its name."""
    rows = save_static(tmp_path / "original", kind)
    small = rows_after(tmp_path / "small", "factorize", tmp_path / "original", "--rank", RANK)
    assert {name: value.shape for name, value in small.items()} == {left: (V, RANK)}
    np.testing.assert_allclose(encoded(tmp_path / "small", TEXTS), means(low_rank(rows), TEXTS), atol=1e-6)
    dense = rows_after(tmp_path / "dense", "expand", tmp_path / "small")
    assert {*dense} == {*load_file(tmp_path / "original/model.safetensors")}
    np.testing.assert_allclose(encoded(tmp_path / "dense", TEXTS), means(low_rank(rows), TEXTS), atol=1e-6)
    for name in ("modules.json", "config.json", "wordembedding_config.json"):
        if (tmp_path / "original" / name).exists():
            one, other = (json.loads((tmp_path / d / name).read_text()) for d in ("original", "dense"))
            assert one == other
    assert not (tmp_path / "dense/1_Dense").exists()
    assert (
        "as it was written"
        in succeed("verify", tmp_path / "small", "--against", tmp_path / "original").stdout
    )


def test_what_follows_word_embeddings_may_be_anything(tmp_path):
    """Each token's row is projected, so a maximum over them or weights of words need no care."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings, WordWeights
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    def model(rows):
        words = WordEmbeddings(WhitespaceTokenizer(WORDS), rows)
        factors = WordWeights(WORDS, {word: 1 + i / 100 for i, word in enumerate(WORDS)})
        return SentenceTransformer(modules=[words, factors, Pooling(D, "max")], device="cpu")

    model(matrix()).save(str(tmp_path / "original"), create_model_card=False)
    succeed("factorize", tmp_path / "original", "--rank", RANK, "-o", tmp_path / "small")
    expected = model(low_rank(matrix()).astype(np.float32)).encode(TEXTS)
    np.testing.assert_allclose(encoded(tmp_path / "small", TEXTS), expected, atol=1e-6)


def test_a_quantized_vocabulary_is_stored_for_embcompress(tmp_path):
    """The library folds the list of rows into the table before a projection could follow."""
    save_static(tmp_path / "original", "quantized vocabulary")
    done = json.loads(
        succeed("factorize", tmp_path / "original", "--rank", RANK, "--json", "--dry-run").stdout
    )
    assert done["tables"][0]["layout"] == "sequential"
    assert any("mapping" in note for note in done["notes"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["svd", "pq"])
def test_who_can_load_the_output_is_said_before_it_is_written(kind, method, tmp_path):
    """model2vec's own class reads neither factors nor codes."""
    save_static(tmp_path / "original", kind)
    words = ("factorize", tmp_path / "original", "--ratio", 0.6, "--method", method, "--json", "--dry-run")
    notes = "; ".join(json.loads(succeed(*words).stdout)["notes"])
    native = method == "svd" and kind != "quantized vocabulary"
    assert ("without embcompress" in notes) == native
    assert ("embcompress.register()" in notes) == (not native)
    assert ("model2vec" in notes) == (kind in ("model2vec", "quantized vocabulary"))


@pytest.mark.parametrize("kind", ["static", "model2vec", "quantized vocabulary"])
@pytest.mark.parametrize(("method", "works"), [("svd", False), ("int8", False), (None, True)])
def test_model2vec_reads_what_expand_makes_and_refuses_the_rest(kind, method, works, tmp_path):
    """With the real library: it never takes factors or a guard for vectors."""
    model2vec = pytest.importorskip("model2vec")
    save_static(tmp_path / "original", kind)
    place = tmp_path / "small"
    succeed("factorize", tmp_path / "original", "--method", method or "int8", "--ratio", 0.6, "-o", place)
    if not works:
        with pytest.raises((safetensors.SafetensorError, ValueError, IndexError)):
            model2vec.StaticModel.from_pretrained(place).encode(TEXTS)
        return
    succeed("expand", place, "-o", tmp_path / "dense")
    found = model2vec.StaticModel.from_pretrained(tmp_path / "dense").encode(TEXTS)
    np.testing.assert_allclose(found, encoded(tmp_path / "dense", TEXTS), atol=1e-6)
