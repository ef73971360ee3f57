"""Saved word vectors of gensim: plain ones, and those of its FastText, which have n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.pickles.nodes import Made
from embcompress.checkpoint.pickles.reader import PICKLE_LIMIT, load
from embcompress.checkpoint.vectors.base import Extra, StoredVectors, check_dimension, check_token
from embcompress.checkpoint.vectors.fasttext.header import new_header, parse_header
from embcompress.checkpoint.vectors.fasttext.model import COUNTS, OUTPUT, held
from embcompress.checkpoint.vectors.fasttext.subwords import HEADER
from embcompress.checkpoint.vectors.gensim.attributes import Array, Attributes, inline_array
from embcompress.dtypes import DTYPES, TABLE_DTYPES
from embcompress.errors import InputError
from embcompress.storage.regular import read_limited

GENSIM_COUNTS = "gensim.counts"
"""Tensor name of how often each key was counted."""

_MODELS = ("gensim.models.word2vec.Word2Vec", "gensim.models.fasttext.FastText")
_VECTORS = tuple(
    f"gensim.models.keyedvectors.{name}"
    for name in ("KeyedVectors", "Word2VecKeyedVectors", "EuclideanKeyedVectors")
)
_WITH_NGRAMS = (
    "gensim.models.fasttext.FastTextKeyedVectors",
    "gensim.models.keyedvectors.FastTextKeyedVectors",
)

_TEXT = "save its words with .save_word2vec_format('words.vec')"


def open_gensim(path: Path) -> StoredVectors:
    """Open a saved model or saved vectors.

    Raises:
        UsageError: a file that belongs to them is missing.
        InputError: they are broken, or of another class.
    """
    where = str(path)
    data = read_limited(path, PICKLE_LIMIT, _TEXT)
    try:
        root = load(data, where).root
    except InputError as error:
        raise InputError(error.message, remedy=f"load it with gensim and {_TEXT}") from None
    found = Attributes(root, path, where)
    notes: tuple[str, ...] = ()
    if found.class_name in _MODELS:
        kind = found.class_name.rpartition(".")[2]
        notes = (f"a {kind} model of gensim, of which only the vectors are taken",)
        found = found.inner("wv")
    keys = found.texts("index_to_key", "index2word", "index2entity")
    if not keys or found.class_name not in (*_VECTORS, *_WITH_NGRAMS):
        raise InputError(
            f"{where}: is a {found.class_name[:100]} of gensim; only KeyedVectors, Word2Vec and FastText "
            "are read",
            remedy="save its vectors alone: model.wv.save('words.kv')",
        )
    if found.class_name in _WITH_NGRAMS:
        return _WithNgrams(found, keys, where, notes)
    return _Plain(found, keys, where, notes)


class _Saved(StoredVectors):
    """What both kinds share.

    Args:
        keys: the words.
        where: the file, for messages.
        notes: what the user should know.
    """

    def __init__(self, keys: Sequence[str], where: str, notes: tuple[str, ...]) -> None:
        self._keys, self._where, self._notes = keys, where, notes

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def tokens(self) -> Iterator[bytes]:
        for number, key in enumerate(self._keys):
            try:
                token = key.encode()
            except UnicodeEncodeError:
                token = b"\n"
            if b"\n" in token:
                raise InputError(
                    f"{self._where}: key {number:,}, {key[:40]!r}, is not a text of one line",
                    remedy="remove it, or train with tokens of one line",
                )
            check_token(token, f"{self._where}: key {number:,}")
            yield token

    def _counts(self, found: Attributes) -> NDArray[Any] | None:
        """How often each key was counted, None if it is not known."""
        expandos = found.get("expandos")
        node = expandos.get("count") if type(expandos) is dict else None
        if not isinstance(node, Made):
            return None
        counts = inline_array(node, f"{self._where}: its counts")
        if counts.dtype.name not in ("I64", "I32") or counts.shape != (len(self._keys),):
            return None
        return counts.rows(0, len(self._keys)).astype(np.int64)


class _Plain(_Saved):
    """KeyedVectors: a row for each key."""

    def __init__(self, found: Attributes, keys: Sequence[str], where: str, notes: tuple[str, ...]) -> None:
        super().__init__(keys, where, notes)
        self._array = _matrix(found, where, len(keys), "vectors", "syn0")
        self.shape, self.dtype = (self._array.shape[0], self._array.shape[1]), self._array.dtype
        counts = self._counts(found)
        self.extras = {} if counts is None else {GENSIM_COUNTS: held(counts)}

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._array.rows(start, stop)

    def close(self) -> None:
        self._array.close()


class _WithNgrams(_Saved):
    """FastText of gensim: the rows of words, then those of n-grams, as in a model of fastText itself."""

    dtype = DTYPES["F32"]

    def __init__(self, found: Attributes, keys: Sequence[str], where: str, notes: tuple[str, ...]) -> None:
        super().__init__(keys, where, notes)
        lengths = [found.get(name) for name in ("min_n", "max_n", "bucket")]
        if not all(type(value) is int and 0 <= value < 1 << 31 for value in lengths) or not keys:
            raise InputError(
                f"{where}: n-grams of {lengths[0]} to {lengths[1]} characters in {lengths[2]} buckets, "
                "integers are expected",
                remedy="load it with gensim 4 and save it again",
            )
        shortest, longest, buckets = lengths
        if found.get("compatible_hash") is not True and longest and buckets:
            raise InputError(
                f"{where}: its n-grams are not hashed as those of fastText are",
                remedy="load it with gensim 4 and save it again",
            )
        self._words = _matrix(found, where, len(keys), "vectors_vocab")
        self._ngrams = _matrix(found, where, buckets, "vectors_ngrams") if buckets else None
        widths = {array.shape[1] for array in (self._words, self._ngrams) if array is not None}
        if len(widths) > 1:
            raise InputError(f"{where}: words and n-grams have vectors of {sorted(widths)} numbers")
        self.shape = (len(keys) + buckets, widths.pop())
        header = new_header(self.shape[1], len(keys), buckets, (shortest, longest))
        parse_header(header, where)
        counts = self._counts(found)
        stored = np.ones(len(keys), np.int64) if counts is None else counts
        nothing = np.empty((0, self.shape[1]), np.float32)
        output = Extra(self.dtype, nothing.shape, lambda start, stop: nothing[start:stop])
        self.extras = {HEADER: held(header), COUNTS: held(stored), OUTPUT: output}

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        words = len(self._keys)
        found = np.empty((stop - start, self.shape[1]), np.float32)
        with np.errstate(over="ignore"):  # infinity is reported where it matters
            if start < words:
                found[: words - start] = self._words.rows(start, min(stop, words))
            if stop > words and self._ngrams is not None:
                found[max(0, words - start) :] = self._ngrams.rows(max(0, start - words), stop - words)
        return found

    def close(self) -> None:
        self._words.close()
        if self._ngrams is not None:
            self._ngrams.close()


def _matrix(found: Attributes, where: str, rows: int, *names: str) -> Array:
    """The first of these attributes that is there, a matrix of so many rows."""
    array = next((array for array in map(found.array, names) if array is not None), None)
    if array is None:
        raise InputError(f"{where}: holds no {' or '.join(names)}", remedy="save it again with gensim 4")
    if len(array.shape) != 2 or array.shape[0] != rows or array.dtype not in TABLE_DTYPES:
        array.close()
        raise InputError(
            f"{where}: {names[0]} is {array.dtype.name} of shape {list(array.shape)}, "
            f"floats of {rows:,} rows are expected",
            remedy="save it again with gensim 4",
        )
    check_dimension(array.shape[1], where)
    return array
