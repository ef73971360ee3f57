"""Formats that can only be read from start to end, and a temporary copy for access to any row."""

from __future__ import annotations

import abc
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.vectors.base import TOKEN_LIMIT, StoredVectors, VectorFormat, Written, check_token
from embcompress.checkpoint.vectors.packing import Sink, packed
from embcompress.checkpoint.vectors.stream import CHUNK, Stream
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError, InputError
from embcompress.progress import Progress
from embcompress.storage.rawio import read_exact, write_all
from embcompress.storage.regular import opened

Row = NDArray[np.float32]

_SPOOLED = 1 << 18
"""Numbers copied at a time."""


@dataclass(frozen=True)
class Entries:
    """The vectors in a stream.

    Attributes:
        dimension: numbers per vector.
        each: yields token, numbers as stored, and position of each entry (a line or entry number).
        parse: turns the stored numbers of an entry into its vector (d); its second argument names the
            entry in an error.
        where: the name of the entry at a position, for errors.
    """

    dimension: int
    each: Iterator[tuple[bytes, bytes, int]]
    parse: Callable[[bytes, str], Row]
    where: Callable[[int], str]


class StreamedFormat(VectorFormat):
    """A format that is read from start to end, plain or compressed."""

    @abc.abstractmethod
    def entries(self, stream: Stream) -> Entries:
        """Parse the start of ``stream`` and return its vectors.

        Errors that concern the whole file are raised when the last vector has been read.

        Raises:
            InputError: the stream is corrupt.
        """

    @abc.abstractmethod
    def write_to(self, file: Sink, new: Written) -> None:
        """Write vectors to an open file; see :meth:`write`."""

    def open(self, path: Path, progress: Progress) -> StoredVectors:
        """Read the whole file once and keep a temporary copy of its rows."""
        with Stream(path, progress) as stream:
            return Spool(self.entries(stream))

    def write(self, target: Path, new: Written) -> None:
        """Write the vectors, compressed if the name of ``target`` ends in ``.gz`` or ``.bz2``."""
        with packed(target) as file:
            self.write_to(file, new)


class Spool(StoredVectors):
    """Vectors from a stream, with a copy of the rows in an unnamed temporary file.

    The copy is in Python's temporary directory (``TMPDIR``) and takes four bytes per number; it disappears
    with the process. Tokens are kept in memory.

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
        _spool(self._file, block, 4 * self._columns * (self._count + len(block)))
        self._count += len(block)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        found = np.empty((stop - start, self._columns), np.float32)
        read_exact(self._file.fileno(), 4 * self._columns * start, found, "the copy of the vectors")
        return found

    def tokens(self) -> Iterator[bytes]:
        end = len(self._tokens) - 1
        pieces = (bytes(self._tokens[i : min(i + CHUNK, end)]) for i in range(0, end, CHUNK))
        return split_tokens(pieces, "the vectors")

    def close(self) -> None:
        """Delete the temporary copy."""
        self._file.close()


def whole_file(path: Path, progress: Progress) -> IO[bytes]:
    """A file to read from any place: ``path`` itself, or an unnamed temporary copy of what it holds unpacked.

    Raises:
        InputError: it is compressed, and corrupt.
        EmbcompressError: there is no room for the copy.
    """
    with Stream(path, progress) as stream:
        if not stream.compressed:
            return opened(path)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            done = 0
            while data := stream.read():
                done += len(data)
                _spool(file, data, done)
        except BaseException:
            file.close()
            raise
        return file


def _spool(file: IO[bytes], data: bytes | Row, needed: int) -> None:
    """Append to a temporary file, which then has ``needed`` bytes."""
    try:
        write_all(file.fileno(), data)
    except OSError as error:
        raise EmbcompressError(
            f"{tempfile.gettempdir()}: cannot take {needed:,} bytes of vectors ({error.strerror})",
            remedy="set the environment variable TMPDIR to a directory with more room",
        ) from None


def counted(tokens: Iterable[bytes], rows: int, where: str) -> Iterator[bytes]:
    """Pass the tokens on, and check that there is one per row.

    Raises:
        InputError: there are more or fewer.
    """
    count = 0
    for count, token in enumerate(tokens, 1):
        if count > rows:
            break
        yield token
    if count != rows:
        found = "more" if count > rows else f"{count:,}"
        raise InputError(
            f"{where}: {rows:,} tokens are expected, one per row, there are {found}",
            remedy="make the file again from its source",
        )


def split_tokens(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Split bytes into the tokens that line feeds separate.

    Args:
        pieces: the bytes, in pieces of any length.
        where: name of the bytes, for error messages.

    Raises:
        InputError: one of them is not a valid token.
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
