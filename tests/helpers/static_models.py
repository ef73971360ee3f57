"""Static models, saved by sentence-transformers or written as model2vec writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

V, D = 300, 32
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(V - 2))]
KINDS = ("static", "words", "model2vec", "quantized vocabulary")


def matrix(rows: int = V, columns: int = D, seed: int = 0) -> NDArray[np.float32]:
    """Rows with a falling spectrum; no row is zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * 0.85 ** np.arange(columns)).astype(np.float32)


def texts(count: int = 20, seed: int = 1) -> list[str]:
    """Texts of five known words each."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[2:], 5)) for _ in range(count)]


def tokenizer() -> Any:
    """A ``tokenizers.Tokenizer`` that splits at blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def save_static(folder: Path, kind: str = "static") -> NDArray[np.float32]:
    """Write a static model into ``folder``, and return the row of each token (V×D)."""
    if kind in ("static", "words"):
        return _by_sentence_transformers(folder, kind)
    rows, row_of, extra = matrix(), np.arange(V), {}
    factor = np.ones(V, np.float32)
    if kind == "quantized vocabulary":
        rows = matrix(60)
        rng = np.random.default_rng(5)
        row_of, factor = rng.integers(0, 60, V), rng.random(V, np.float32) + 0.1
        extra = {"mapping": row_of.astype(np.int32), "weights": factor}
    folder.mkdir()
    save_file({"embeddings": rows, **extra}, folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        '{"normalize": false, "max_length": 512, "embedding_dtype": "float32"}'
    )
    module = {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return rows[row_of] * factor[:, None]


def _by_sentence_transformers(folder: Path, kind: str) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    rows = matrix()
    if kind == "static":
        modules = [StaticEmbedding(tokenizer(), embedding_weights=rows.copy())]
    else:
        modules = [WordEmbeddings(WhitespaceTokenizer(WORDS), rows.copy()), Pooling(D)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return rows


def means(rows: NDArray[Any], lines: list[str]) -> NDArray[Any]:
    """The mean of the rows of each text's words."""
    return np.stack([rows[[WORDS.index(word) for word in line.split()]].mean(axis=0) for line in lines])


def encoded(folder: Path, lines: list[str]) -> NDArray[Any]:
    """The vectors that sentence-transformers computes with the model in ``folder``."""
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(str(folder), device="cpu").encode(lines))


def unwrap_static_modules() -> None:
    """Undo what ``embcompress.register`` does to sentence-transformers."""
    library = sys.modules.get("sentence_transformers.sentence_transformer.modules")
    for kind in () if library is None else (library.StaticEmbedding, library.WordEmbeddings):
        if hasattr(kind.load, "__wrapped__"):
            kind.load, kind.save = classmethod(kind.load.__wrapped__), kind.save.__wrapped__
