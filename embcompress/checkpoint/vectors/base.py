"""What every format of word vectors offers: tokens and their vectors, read and written.

A format is one file with a subclass of :class:`VectorFormat` and one line in ``VECTOR_FORMATS``
(``checkpoint/vectors/registry.py``); contract tests run over that registry. Most are read from
front to back, entry by entry (``streamed.py``); all open as :class:`StoredVectors`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.progress import Progress

DIMENSION_LIMIT = 65_536
"""Most numbers a vector may have; real ones have 50 … 4,096, and a header can claim anything."""

TOKEN_LIMIT = 4096
"""Longest token taken, in bytes; word2vec itself stops at 100."""

AGAIN = "download or write it again"

_WRITTEN = 1 << 18
"""Numbers that are written at a time: little memory, however long they are as text."""


class StoredVectors(abc.ABC):
    """Vectors whose rows can be read in any order.

    Attributes:
        shape: (tokens, numbers in each vector).
        dtype: element type they are stored in.
    """

    shape: tuple[int, int]
    dtype: DType

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` as float32, float64 ones as float64; the array is the caller's own.

        Raises:
            InputError: the bytes cannot be read.
        """

    @abc.abstractmethod
    def tokens(self) -> Iterator[bytes]:
        """The token of each row, in order.

        Raises:
            InputError: there are more or fewer than rows, or one cannot be a token.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release what is held open."""


@dataclass(frozen=True)
class Written:
    """Vectors that are to be written.

    Attributes:
        shape: (tokens, numbers in each vector).
        dtype: element type of the table that they stand for.
        tokens: the token of each row (V); whoever gives them raises where they are more or fewer.
        blocks: consecutive rows (any number × d), together ``shape``.
        advance: told the bytes of each block, as they are in memory.
    """

    shape: tuple[int, int]
    dtype: DType
    tokens: Iterable[bytes]
    blocks: Iterable[NDArray[Any]]
    advance: Callable[[int], None]

    def entries(self) -> Iterator[tuple[list[bytes], NDArray[Any]]]:
        """The vectors, some at a time: their tokens, and their rows."""
        tokens = iter(self.tokens)
        step = max(1, _WRITTEN // self.shape[1])
        for block in self.blocks:
            for start in range(0, len(block), step):
                rows = block[start : start + step]
                yield [*islice(tokens, len(rows))], rows
            self.advance(block.nbytes)
        next(tokens, None)  # which raises where there is one more than rows


class VectorFormat(abc.ABC):
    """One way in which word vectors are stored.

    Attributes:
        name: what it is called in messages, and in the record of a compressed file.
        suffixes: endings of file names that mean this format.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def recognizes(self, path: Path, head: bytes) -> bool:
        """Whether ``path``, which somebody calls vectors, is of this format; never raises for a wrong one.

        The suffix is believed so that what is wrong can be said; without it the contents decide.

        Args:
            path: an existing file or directory.
            head: its first bytes, decompressed; empty for a directory.
        """

    def is_certain(self, path: Path, head: bytes) -> bool:
        """Whether ``path``, which may be anything, is of this format; never raises for a wrong one."""
        return self.recognizes(path, head)

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files that belong to the vectors in ``path``, this one first."""
        return (path,)

    @abc.abstractmethod
    def open(self, path: Path, progress: Progress) -> StoredVectors:
        """Open vectors so that rows can be read in any order, and many times.

        Raises:
            UsageError: a file that belongs to it is missing.
            InputError: the file is corrupt.
            EmbcompressError: there is no room for what must be kept beside it.
        """

    @abc.abstractmethod
    def write(self, target: Path, new: Written) -> None:
        """Write vectors to ``target``, which does not exist yet; :meth:`open` reads the same again.

        Files beside it are brought to the disk, ``target`` is the caller's to sync.

        Raises:
            InputError: a token cannot be written so.
        """

    @abc.abstractmethod
    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:
        """Bytes that such vectors take, nearly; ``token_bytes`` are those of all tokens."""


def suffix_of(path: Path) -> str:
    """The suffix in lower case, that under ``.gz`` for a compressed file."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def check_token(token: bytes, where: str) -> None:
    """Refuse what can be no token.

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
