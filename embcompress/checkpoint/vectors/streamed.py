"""Formats that are read from front to back, and what keeps their rows where each can be found again."""

from __future__ import annotations

import abc
import gzip
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.vectors.base import TOKEN_LIMIT, StoredVectors, VectorFormat, Written, check_token
from embcompress.checkpoint.vectors.stream import CHUNK, Stream
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError, InputError
from embcompress.progress import Progress
from embcompress.storage.rawio import read_exact, write_all

Row = NDArray[np.float32]

_SPOOLED = 1 << 18
"""Numbers that are spooled at a time."""

_GZIP_LEVEL = 6
"""How hard text is compressed: as the program gzip does it; Python's own level takes much longer."""


@dataclass(frozen=True)
class Entries:
    """Vectors as they come in a stream.

    Attributes:
        dimension: numbers in each.
        each: token, numbers as they are stored, and place in the file.
        parse: from the numbers of an entry, and what to call it in an error, to its vector (d).
        where: what to call the entry at a place.
    """

    dimension: int
    each: Iterator[tuple[bytes, bytes, int]]
    parse: Callable[[bytes, str], Row]
    where: Callable[[int], str]


class StreamedFormat(VectorFormat):
    """A format that is read from front to back, plain or gzip."""

    @abc.abstractmethod
    def entries(self, stream: Stream) -> Entries:
        """The vectors behind the beginning of ``stream``; what is wrong with the whole is told at its end.

        Raises:
            InputError: it is corrupt.
        """

    @abc.abstractmethod
    def write_to(self, file: BinaryIO | gzip.GzipFile, new: Written) -> None:
        """Write vectors to an open file; see :meth:`write`."""

    def open(self, path: Path, progress: Progress) -> StoredVectors:
        """Read the whole file once and keep its rows; see the base class."""
        with Stream(path, progress) as stream:
            return Spool(self.entries(stream))

    def write(self, target: Path, new: Written) -> None:
        """Write them, compressed where the name of ``target`` says so; see the base class."""
        with target.open("xb") as file:
            if target.suffix.lower() != ".gz":
                self.write_to(file, new)
                return
            # Neither name nor time: the same vectors give the same bytes.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                self.write_to(packed, new)


class Spool(StoredVectors):
    """Vectors of a stream, their rows kept in a file without a name, which is gone with the process.

    It stands where Python keeps temporary files (``TMPDIR``) and takes four bytes a number; tokens are
    kept in memory.

    Args:
        found: the vectors.

    Raises:
        InputError: the stream is corrupt, or a token holds a line feed.
        EmbcompressError: there is no room for the rows.
    """

    dtype = DTYPES["F32"]

    def __init__(self, found: Entries) -> None:
        self._columns, self._count = found.dimension, 0
        self._tokens = bytearray()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            self._fill(found)
        except BaseException:
            self._file.close()
            raise
        self.shape = (self._count, self._columns)

    def _fill(self, found: Entries) -> None:
        block = np.empty((max(1, _SPOOLED // self._columns), self._columns), np.float32)
        filled = 0
        for token, numbers, place in found.each:
            where = found.where(place)
            check_token(token, where)
            if b"\n" in token:
                raise InputError(
                    f"{where}: token {token[:40].decode('utf-8', 'replace')!r} holds a line feed",
                    remedy="remove the vector, or train with tokens of one line",
                )
            block[filled] = found.parse(numbers, where)
            self._tokens += token + b"\n"
            filled += 1
            if filled == len(block):
                self._put(block)
                filled = 0
        self._put(block[:filled])

    def _put(self, block: Row) -> None:
        try:
            write_all(self._file.fileno(), block)
        except OSError as error:
            needed = 4 * self._columns * (self._count + len(block))
            raise EmbcompressError(
                f"{tempfile.gettempdir()}: cannot take {needed:,} bytes of vectors ({error.strerror})",
                remedy="name a place with more room in the environment variable TMPDIR",
            ) from None
        self._count += len(block)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop``; see the base class."""
        found = np.empty((stop - start, self._columns), np.float32)
        read_exact(self._file.fileno(), 4 * self._columns * start, found, "the copy of the vectors")
        return found

    def tokens(self) -> Iterator[bytes]:
        """The token of each row; see the base class."""
        end = len(self._tokens) - 1
        pieces = (bytes(self._tokens[i : min(i + CHUNK, end)]) for i in range(0, end, CHUNK))
        return split_tokens(pieces, "the vectors")

    def close(self) -> None:
        """Give the room back."""
        self._file.close()


def split_tokens(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Tokens that are stored one after another with a line feed between two.

    Args:
        pieces: what is stored, in pieces of any length.
        where: what to call it in an error.

    Raises:
        InputError: one cannot be a token.
    """
    rest, number = b"", 0
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for token in whole:
            number += 1
            check_token(token, f"{where}: token {number:,}")
            yield token
        if len(rest) > TOKEN_LIMIT:
            check_token(rest, f"{where}: token {number + 1:,}")
    check_token(rest, f"{where}: token {number + 1:,}")
    yield rest
