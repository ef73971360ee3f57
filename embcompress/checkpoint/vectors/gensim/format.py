"""Saved word vectors of gensim as a format; KeyedVectors are also written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embcompress.checkpoint.pickles.nodes import Global, Made
from embcompress.checkpoint.pickles.writer import dump
from embcompress.checkpoint.vectors.base import StoredVectors, VectorFormat, Written
from embcompress.checkpoint.vectors.fasttext.format import FastText
from embcompress.checkpoint.vectors.gensim.stored import GENSIM_COUNTS, open_gensim
from embcompress.checkpoint.vectors.npy import write_matrix
from embcompress.dtypes import DType
from embcompress.progress import Progress
from embcompress.storage.rawio import naming
from embcompress.storage.regular import first_bytes

_HEAD = 100
"""Bytes in which the pickle names its class."""

_ARRAYS = ("vectors", "syn0", "vectors_vocab", "vectors_ngrams")


class Gensim(VectorFormat):
    """KeyedVectors, Word2Vec and FastText as gensim saves them, with the .npy files beside them.

    A dense copy of the vectors of a model is KeyedVectors, or with n-grams a model of fastText.
    """

    name = "gensim KeyedVectors"
    suffixes = (".kv", ".model")

    def recognizes(self, path: Path, head: bytes) -> bool:  # noqa: ARG002 - many files are called .model
        """Recognize a pickle whose first name is one of gensim."""
        return is_gensim(head)

    def files(self, path: Path) -> tuple[Path, ...]:
        """The file, and those of its arrays beside it."""
        names = (f"{path.name}{owner}.{array}.npy" for owner in ("", ".wv") for array in _ARRAYS)
        return (path, *(file for file in map(path.with_name, names) if file.is_file()))

    def dense_form(self, path: Path) -> tuple[str, str]:
        """KeyedVectors, or a model of fastText for the classes with n-grams."""
        with naming(path):
            with_ngrams = b"FastText" in first_bytes(path, _HEAD)
        return (FastText.name, ".bin") if with_ngrams else (self.name, ".kv")

    def open(self, path: Path, progress: Progress) -> StoredVectors:  # noqa: ARG002 - it is read at once
        """Read the pickle as inert data; rows are read on demand."""
        return open_gensim(path)

    def write(self, target: Path, new: Written) -> None:
        """Write KeyedVectors, whose array is in a file beside them."""
        keys: list[str] = []
        matrix = target.with_name(f"{target.name}.vectors.npy")
        write_matrix(
            matrix, new, lambda tokens: keys.extend(token.decode("utf-8", "replace") for token in tokens)
        )
        with target.open("xb") as file:
            file.write(dump(_saved(keys, new), protocol=4))

    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:
        return 1024 + dtype.nbytes(shape[0] * shape[1]) + token_bytes + 16 * shape[0]


def is_gensim(head: bytes) -> bool:
    """Whether a file begins like a pickle of an object of gensim."""
    return head.startswith(b"\x80") and b"gensim." in head[:_HEAD]


def _saved(keys: list[str], new: Written) -> Made:
    """The attributes of KeyedVectors of gensim 4."""
    counts = new.extras.get(GENSIM_COUNTS)
    expandos = {}
    if counts is not None and counts.dtype.name == "I64" and counts.shape == (len(keys),):
        stored = b"".join(np.asarray(block, "<i8").tobytes() for block in counts.blocks())
        expandos = {"count": _array(stored, counts.shape)}
    made = Made(Global("gensim.models.keyedvectors", "KeyedVectors"), (), new=True)
    made.state = {
        "vector_size": new.shape[1],
        "index_to_key": keys,
        "key_to_index": {key: row for row, key in reversed([*enumerate(keys)])},
        "next_index": len(keys),
        "norms": None,
        "expandos": expandos,
        "mapfile_path": None,
        "__numpys": ["vectors"],
        "__scipys": [],
        "__ignoreds": [],
        "__recursive_saveloads": [],
    }
    return made


def _array(data: bytes, shape: tuple[int, ...]) -> Made:
    """An array of 64-bit integers, as NumPy pickles it."""
    kind = Made(Global("numpy", "dtype"), ("i8", False, True))
    kind.state = (3, "<", None, None, None, -1, -1, 0)
    made = Made(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"))
    made.state = (1, shape, kind, False, data)
    return made
