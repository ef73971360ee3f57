"""The choice of the vectors to keep for training, and the matrix that collects them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embcompress.errors import InputError

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class WordVectors:
    """Tokens with their vectors.

    Attributes:
        tokens: the tokens, all different.
        matrix: float32 (tokens × d); row i belongs to ``tokens[i]``.
    """

    tokens: tuple[str, ...]
    matrix: Matrix


class Choice:
    """Decides which tokens are kept, and which row of the result each vector gets.

    Of tokens that occur twice the first is kept. A wanted token that the file does not hold gets the
    vector of the first token that equals it in lower case ("france" gets that of "France").

    Args:
        wanted: tokens to keep, None for all.
    """

    def __init__(self, wanted: Collection[str] | None) -> None:
        self._wanted = None if wanted is None else frozenset(wanted)
        self._slots: dict[str, int] = {}
        self._exact: set[str] = set()
        self.seen = 0
        """Number of tokens offered so far."""

    def slot(self, token: str) -> int | None:
        """The row for the vector of ``token``, None if it is not kept.

        Rows are assigned in order. A row is assigned a second time if the exact token comes after one
        that only equals it in lower case: the later vector replaces the earlier.
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
    def unknown(self) -> tuple[str, ...]:
        """The wanted tokens that have not been offered as they are spelled, sorted."""
        return tuple(sorted((self._wanted or frozenset()) - self._exact))

    def assign(self, token: str) -> int:
        """The row for a wanted token that the file does not hold, and that has a vector nevertheless."""
        return self._slots.setdefault(token, len(self._slots))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The kept tokens, spelled as wanted, in the order of their rows."""
        return tuple(self._slots)


class Kept:
    """A matrix that grows as rows are added, so that the size a file claims need not be trusted.

    Args:
        dimension: numbers per row.
    """

    def __init__(self, dimension: int) -> None:
        self._matrix: Matrix = np.empty((0, dimension), np.float32)
        self._count = 0

    def put(self, slot: int, row: NDArray[np.floating]) -> None:
        """Write a row; ``slot`` is that of an earlier row, or the next one."""
        if slot >= len(self._matrix):
            dimension = self._matrix.shape[1]
            # The kernel can remap the memory instead of copying it; no view of it exists yet.
            longer = max((1 << 20) // (4 * dimension) + 1, slot + slot // 2)
            self._matrix.resize((longer, dimension), refcheck=False)
        self._matrix[slot] = row
        self._count = max(self._count, slot + 1)

    def matrix(self) -> Matrix:
        """The rows; none may be added afterwards."""
        self._matrix.resize((self._count, self._matrix.shape[1]), refcheck=False)
        return self._matrix


def decode_token(token: bytes) -> str:
    """A token as text; bytes that are not UTF-8 become U+FFFD.

    GoogleNews and other word2vec files hold some tokens that were cut in the middle of a character.
    They are no reason to refuse three million others, and no real token can equal them.
    """
    return token.decode("utf-8", "replace")


def check_finite(row: NDArray[np.floating], where: str) -> None:
    """Refuse a vector with a number that is NaN, or infinite in float32.

    Raises:
        InputError: with the first such number and its position.
    """
    finite = np.isfinite(row)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InputError(
            f"{where}: number {at + 1} is {row[at]} in float32, a finite one is expected",
            remedy="remove the vector, or train it again",
        )
