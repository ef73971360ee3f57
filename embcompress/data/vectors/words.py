"""Find the rows of a text's words in word vectors, which bring tokens but no rule that splits texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.vectors.compressed import tokens_of
from embcompress.checkpoint.vectors.fasttext.subwords import Subwords, subwords_of
from embcompress.data.counting import Counts
from embcompress.data.encoded import Encoded
from embcompress.data.tokenizing import WORD
from embcompress.data.vectors.base import decode_token


class VectorWords:
    """Finds the row of each word of a text.

    A text is split at white space ("U.S." may be a token). What the vectors lack is split further into
    words and punctuation marks, as the tokenizer ``words`` does. A word gets the row of its token, or else
    of the token that is its lower-case form, or else of the first token with the same lower-case form; a
    word without any is left out. Of rows with the same token the first counts, as in training.

    Args:
        tokens: the token of each row.
        subwords: the n-grams of words, of a fastText model. A word then has the rows of its n-grams as well,
            and no others if it has no token.
    """

    def __init__(self, tokens: Iterable[str], subwords: Subwords | None = None) -> None:
        self._subwords = subwords
        self._ngrams: dict[str, list[int]] = {}
        self._rows: dict[str, int] = {}
        for row, token in enumerate(tokens):
            self._rows.setdefault(token, row)
        self._lower: dict[str, int] = {}
        for token, row in self._rows.items():
            if (lower := token.lower()) not in self._rows:
                self._lower.setdefault(lower, row)

    def count(self, texts: Sequence[str]) -> Encoded:
        """Row numbers of each text's words."""
        return Encoded.of([*self._rows_in(unicodedata.normalize("NFC", text))] for text in texts)

    def _rows_in(self, text: str) -> Iterator[int]:
        for run in text.split():
            for word in [run] if self._row(run) is not None else WORD.findall(run):
                row = self._row(word)
                if row is not None:
                    yield row
                yield from self._ngrams_of(word)

    def _ngrams_of(self, word: str) -> Iterable[int]:
        if self._subwords is None:
            return ()
        if word not in self._ngrams:
            self._ngrams[word] = self._subwords.rows(word.encode())
        return self._ngrams[word]

    def _row(self, word: str) -> int | None:
        lower = word.lower()
        ways = (self._rows, word), (self._rows, lower), (self._lower, lower)
        return next((rows[form] for rows, form in ways if form in rows), None)


def words_of(checkpoint: Checkpoint, rows: int) -> VectorWords | None:
    """The words of a checkpoint that holds the token of each of its ``rows``; None of any other."""
    own = tokens_of(checkpoint, rows)
    return None if own is None else VectorWords(map(decode_token, own), subwords_of(checkpoint))


def spread(checkpoint: Checkpoint, counts: Counts) -> Counts:
    """Counts of words, with those of their n-grams added if the checkpoint is a fastText model.

    Counts that say something of rows of n-grams already are returned as they are.

    Args:
        checkpoint: word vectors, or a model.
        counts: how often each row's token occurs (V).
    """
    subwords = subwords_of(checkpoint)
    if subwords is None or counts[subwords.words :].any():
        return counts
    found = counts.copy()
    for row, token in enumerate(tokens_of(checkpoint, len(counts)) or ()):
        if counts[row]:
            np.add.at(found, np.array(subwords.rows(token), np.int64), counts[row])
    return found
