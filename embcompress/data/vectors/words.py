"""Find the rows of a text's words in word vectors, which bring tokens but no rule that splits texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.vectors.compressed import tokens_of
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
    """

    def __init__(self, tokens: Iterable[str]) -> None:
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
            row = self._row(run)
            found = map(self._row, WORD.findall(run)) if row is None else [row]
            yield from (row for row in found if row is not None)

    def _row(self, word: str) -> int | None:
        lower = word.lower()
        ways = (self._rows, word), (self._rows, lower), (self._lower, lower)
        return next((rows[form] for rows, form in ways if form in rows), None)


def words_of(checkpoint: Checkpoint, rows: int) -> VectorWords | None:
    """The words of a checkpoint that holds the token of each of its ``rows``; None of any other."""
    own = tokens_of(checkpoint, rows)
    return None if own is None else VectorWords(map(decode_token, own))
