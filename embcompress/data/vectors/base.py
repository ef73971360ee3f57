"""What every format of word vectors offers, and the choice of the vectors that are kept.

A format is one file with a subclass of :class:`VectorFormat` and one line in ``VECTOR_FORMATS``
(``data/vectors/__init__.py``); contract tests run over that registry. A format offers each token
of its file to a :class:`Choice`, which says whether it is kept and where its vector goes.
"""

from __future__ import annotations

import abc
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Progress
from embcompress.errors import InputError

Matrix = NDArray[np.float32]

STAGE = "reading vectors"
"""Name of the one stage in which progress is told, in bytes of the file."""

DIMENSION_LIMIT = 65_536
"""Most numbers a vector may have; real ones have 50 … 4,096, and a header can claim anything."""

TOKEN_LIMIT = 4096
"""Longest token taken, in bytes; word2vec itself stops at 100."""

AGAIN = "download or write it again"


@dataclass(frozen=True)
class WordVectors:
    """Tokens with their vectors.

    Attributes:
        tokens: all different.
        matrix: float32 (tokens × d); row i belongs to ``tokens[i]``.
    """

    tokens: tuple[str, ...]
    matrix: Matrix


class Choice:
    """Which tokens are kept, and in which row of the result the vector of each stands.

    Of tokens that occur twice the first is kept. A wanted token that the file does not hold takes
    the first token whose lower-case form it is ("france" takes "France").

    Args:
        wanted: tokens to keep, None for all.
    """

    def __init__(self, wanted: Collection[str] | None) -> None:
        self._wanted = None if wanted is None else frozenset(wanted)
        self._slots: dict[str, int] = {}
        self._exact: set[str] = set()
        self.seen = 0
        """How many tokens were offered."""

    def slot(self, token: str) -> int | None:
        """The row for the vector of ``token``, None where it is not kept.

        Rows are given out in order. A row is given out a second time when the exact token comes
        after one that merely lower-cases to it: the later vector replaces the earlier.
        """
        self.seen += 1
        if self._wanted is None or token in self._wanted:
            if token in self._exact:
                return None
            self._exact.add(token)
            return self._slots.setdefault(token, len(self._slots))
        lower = token.lower()
        if lower not in self._wanted or lower in self._slots:
            return None
        return self._slots.setdefault(lower, len(self._slots))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The kept tokens, as they were wanted, in the order of their rows."""
        return tuple(self._slots)


class Kept:
    """A matrix that grows with the rows that are put into it, so that no claimed size is believed.

    Args:
        dimension: numbers a row.
    """

    def __init__(self, dimension: int) -> None:
        self._matrix: Matrix = np.empty((0, dimension), np.float32)
        self._count = 0

    def put(self, slot: int, row: NDArray[np.floating]) -> None:
        """Write a row; ``slot`` is an earlier one or the next."""
        if slot >= len(self._matrix):
            dimension = self._matrix.shape[1]
            # Reallocating moves no bytes where the kernel can remap them; no view of it exists yet.
            longer = max((1 << 20) // (4 * dimension) + 1, slot + slot // 2)
            self._matrix.resize((longer, dimension), refcheck=False)
        self._matrix[slot] = row
        self._count = max(self._count, slot + 1)

    def matrix(self) -> Matrix:
        """The rows; nothing is put afterwards."""
        self._matrix.resize((self._count, self._matrix.shape[1]), refcheck=False)
        return self._matrix


class VectorFormat(abc.ABC):
    """One way in which word vectors are stored.

    Attributes:
        name: what it is called in messages.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def recognizes(self, path: Path, head: bytes) -> bool:
        """Whether ``path`` is of this format; never raises for a wrong one.

        The suffix is believed so that what is wrong can be said; without it the contents decide.

        Args:
            path: an existing file or directory.
            head: its first bytes, decompressed; empty for a directory.
        """

    @abc.abstractmethod
    def read(self, path: Path, choice: Choice, progress: Progress) -> Matrix:
        """The vectors of the tokens that ``choice`` keeps, in its order.

        Only kept vectors are looked at closely: a NaN in another one is not found.

        Raises:
            UsageError: a file that belongs to it is missing.
            InputError: the file is corrupt.
        """


def suffix_of(path: Path) -> str:
    """The suffix in lower case, that under ``.gz`` for a compressed file."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def decode_token(token: bytes, where: str) -> str:
    """A token's text; bytes that are no UTF-8 become U+FFFD.

    GoogleNews and other word2vec files hold some tokens that were cut in the middle of a letter.
    They are no reason to refuse three million others, and no sane token can be equal to them.

    Raises:
        InputError: it is empty or too long.
    """
    if not token:
        raise InputError(f"{where}: a vector without a token", remedy="remove it, or write the file again")
    if len(token) > TOKEN_LIMIT:
        raise InputError(
            f"{where}: a token of {len(token):,} bytes, limit {TOKEN_LIMIT:,}",
            remedy="see that it is a file of word vectors, or write it again",
        )
    return token.decode("utf-8", "replace")


def check_dimension(dimension: int, where: str) -> None:
    """Refuse vectors of no numbers, or of absurdly many.

    Raises:
        InputError: with the limits.
    """
    if not 1 <= dimension <= DIMENSION_LIMIT:
        raise InputError(
            f"{where}: vectors of {dimension:,} numbers, taken are 1 to {DIMENSION_LIMIT:,}",
            remedy="see that it is a file of word vectors",
        )


def check_finite(row: NDArray[np.floating], where: str) -> None:
    """Refuse a vector with a number that is NaN, or infinite in float32.

    Raises:
        InputError: with the first such number and its place.
    """
    finite = np.isfinite(row)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InputError(
            f"{where}: number {at + 1} is {row[at]} in float32, finite ones are expected",
            remedy="remove the vector, or train it again",
        )
