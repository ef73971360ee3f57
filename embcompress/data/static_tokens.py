"""Token ids of texts as static models of sentence-transformers read them, without special tokens."""

from __future__ import annotations

import string
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import MAPPING, static_modules
from embcompress.checkpoint.directory.shards import read_json
from embcompress.data.counting import Encode
from embcompress.data.encoded import Encoded
from embcompress.data.tokenizing import TokenizerJson
from embcompress.errors import InputError, UsageError

_WHITESPACE, _PHRASES = "whitespacetokenizer_config.json", "phrasetokenizer_config.json"
"""Files of the two tokenizers that ``WordEmbeddings`` may have besides those of transformers."""


def static_encoding(checkpoint: Checkpoint) -> Encode | None:
    """The function that turns texts into token ids as a static model does; None for other models.

    Raises:
        UsageError: the tokenizer is not known here.
        InputError: it cannot be read.
    """
    modules = static_modules(checkpoint.path) if checkpoint.path.is_dir() else ()
    if not modules:
        return None
    folder = checkpoint.folder
    if modules[0].kind == "StaticEmbedding":
        file = folder / "tokenizer.json"
        return TokenizerJson.read(file).plain if file.exists() else None
    if (folder / _PHRASES).exists():
        raise UsageError(
            f"{folder / _PHRASES}: texts are split by NLTK, which is not used here",
            remedy="give counts with --weights",
        )
    return WhitespaceWords.read(folder).encode if (folder / _WHITESPACE).exists() else None


def whitespace_vocabulary(folder: Path) -> list[str] | None:
    """The token of each row, by the file of ``WhitespaceTokenizer``; None if there is none.

    Raises:
        InputError: it cannot be read.
    """
    return _texts(folder / _WHITESPACE, "vocab") if (folder / _WHITESPACE).exists() else None


def static_counting(checkpoint: Checkpoint) -> Encode | None:
    """The function that turns texts into the rows that a static model reads; None for other models.

    Rows and tokens are the same unless model2vec has quantized the vocabulary.

    Raises:
        UsageError, InputError: see :func:`static_encoding`.
    """
    encode, row_of = static_encoding(checkpoint), row_of_token(checkpoint)
    if encode is None or row_of is None:
        return encode
    tokens_of = encode

    def rows(texts: Sequence[str]) -> Encoded:
        found = tokens_of(texts)
        if found.tokens.size and int(found.tokens.max()) >= len(row_of):
            raise InputError(
                f"{checkpoint.path}: a text has token {int(found.tokens.max()):,}, {MAPPING} has "
                f"{len(row_of):,}",
                remedy="use the tokenizer that belongs to this model",
            )
        return Encoded(row_of[found.tokens], found.lengths)

    return rows


def row_of_token(checkpoint: Checkpoint) -> NDArray[np.int64] | None:
    """The row of each token where model2vec has quantized the vocabulary; None where they are the same.

    Raises:
        InputError: a row is negative.
    """
    info = checkpoint.tensors.get(MAPPING)
    if info is None or info.dtype is None or info.dtype.name not in {"I32", "I64"}:
        return None
    mapped = np.frombuffer(b"".join(checkpoint.bytes_of(MAPPING)), info.dtype.storage).astype(np.int64)
    if mapped.size and int(mapped.min()) < 0:
        raise InputError(f"{checkpoint.path}: {MAPPING} has negative rows", remedy="download it again")
    return mapped


class WhitespaceWords:
    """sentence-transformers' ``WhitespaceTokenizer``: words between blanks, with less and less of their form.

    A word is looked up as it is, then without the punctuation around it, then in lower case. A stop word is
    left out, and so is what is not found.

    Args:
        vocabulary: the token of each row; of equal ones the last counts.
        stop_words: the words to leave out.
        lower: whether texts are put in lower case first.
    """

    def __init__(self, vocabulary: Iterable[str], stop_words: Collection[str], *, lower: bool) -> None:
        self._rows = {token: row for row, token in enumerate(vocabulary)}
        self._stops, self._lower = frozenset(stop_words), lower

    @classmethod
    def read(cls, folder: Path) -> WhitespaceWords:
        """Read its file in a folder.

        Raises:
            InputError: it cannot be read.
        """
        file = folder / _WHITESPACE
        lower = read_json(file).get("do_lower_case", False)
        return cls(_texts(file, "vocab"), _texts(file, "stop_words"), lower=lower is True)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The rows of each text's words."""
        return Encoded.of([*self._rows_in(text.lower() if self._lower else text)] for text in texts)

    def _rows_in(self, text: str) -> Iterator[int]:
        for word in text.split():
            bare = word.strip(string.punctuation)
            for form in (word, bare, bare.lower()):
                if form in self._stops:
                    break
                if form in self._rows:
                    yield self._rows[form]
                    break


def _texts(file: Path, key: str) -> list[str]:
    """A list of texts in a JSON object.

    Raises:
        InputError: it is none.
    """
    found = read_json(file).get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{file}: {key} is not a list of texts", remedy="download the directory again")
    return found
