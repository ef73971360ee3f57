"""The interface of every format of word vectors: read and write tokens and their vectors.

A format is one file with a subclass of :class:`VectorFormat` and one line in ``VECTOR_FORMATS``
(``checkpoint/vectors/registry.py``); contract tests run over that registry. Most formats are read from
start to end, entry by entry (``streamed.py``); all open as :class:`StoredVectors`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from numpy.typing import NDArray

from embcompress.checkpoint.tensors import NewTensor
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.progress import Progress

DIMENSION_LIMIT = 65_536
"""Most numbers accepted in a vector; real ones have 50 … 4,096, but a header can claim anything."""

TOKEN_LIMIT = 4096
"""Longest token accepted, in bytes; word2vec itself stops at 100."""

PACKED_SUFFIXES = (".gz", ".bz2", ".zip")
"""Endings of the names of compressed files, which come after the suffix of what they hold."""

AGAIN = "download or write it again"

_WRITTEN = 1 << 18
"""Numbers written at a time, which bounds the memory for their text."""


@dataclass(frozen=True)
class Extra:
    """A tensor that a file of vectors holds beside its table and its tokens.

    Attributes:
        dtype: element type.
        shape: its sizes, one or two.
        read: ``read(start, stop)`` returns elements or rows.
    """

    dtype: DType
    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[Any]]


class StoredVectors(abc.ABC):
    """Vectors whose rows can be read in any order.

    Attributes:
        shape: (rows, numbers per vector).
        dtype: element type they are stored in.
        extras: further tensors, by name.
    """

    shape: tuple[int, int]
    dtype: DType
    extras: Mapping[str, Extra] = MappingProxyType({})

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        return ()

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` as float32, or as float64 if they are stored so; the caller may change them.

        Raises:
            InputError: the bytes cannot be read.
        """

    @abc.abstractmethod
    def tokens(self) -> Iterator[bytes]:
        """The token of each row, in order. Only a fastText model has rows after those, of n-grams.

        Raises:
            InputError: there are more or fewer tokens than rows, or one is not a valid token.
        """

    def check_editable(self) -> None:  # noqa: B027 - most formats have nothing to refuse
        """Refuse vectors that cannot be made smaller.

        Raises:
            UsageError: with the reason.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the open files."""


@dataclass(frozen=True)
class Written:
    """Vectors to be written.

    Attributes:
        shape: (rows, numbers per vector).
        dtype: element type of the dense table.
        tokens: the token of each row (V). The iterable itself raises if there are more or fewer.
        blocks: consecutive rows (any number × d), together of ``shape``.
        advance: called with the bytes of each block in memory.
        extras: further tensors, by name.
    """

    shape: tuple[int, int]
    dtype: DType
    tokens: Iterable[bytes]
    blocks: Iterable[NDArray[Any]]
    advance: Callable[[int], None]
    extras: Mapping[str, NewTensor] = field(default_factory=dict)

    def entries(self) -> Iterator[tuple[list[bytes], NDArray[Any]]]:
        """The vectors in small batches: their tokens, and their rows."""
        tokens = iter(self.tokens)
        step = max(1, _WRITTEN // self.shape[1])
        for block in self.blocks:
            for start in range(0, len(block), step):
                rows = block[start : start + step]
                yield [*islice(tokens, len(rows))], rows
            self.advance(block.nbytes)
        next(tokens, None)  # raises if there is one more token than rows


class VectorFormat(abc.ABC):
    """A file format for word vectors.

    Attributes:
        name: name of the format in messages and in the record of a compressed file.
        suffixes: endings of file names that mean this format.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def recognizes(self, path: Path, head: bytes) -> bool:
        """Whether ``path``, known to hold vectors, is of this format; never raises for other formats.

        A matching suffix is enough, so that :meth:`open` can say what is wrong. Without one the contents
        decide.

        Args:
            path: an existing file or directory.
            head: its first bytes, decompressed; empty for a directory.
        """

    def is_certain(self, path: Path, head: bytes) -> bool:
        """Whether ``path``, which may be anything, is of this format; never raises for other formats."""
        return self.recognizes(path, head)

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files that belong to the vectors in ``path``, with ``path`` itself first."""
        return (path,)

    @abc.abstractmethod
    def open(self, path: Path, progress: Progress) -> StoredVectors:
        """Open vectors so that rows can be read in any order, any number of times.

        Raises:
            UsageError: a file that belongs to the vectors is missing.
            InputError: the file is corrupt.
            EmbcompressError: there is no room for a temporary copy.
        """

    @abc.abstractmethod
    def write(self, target: Path, new: Written) -> None:
        """Write vectors to ``target``, which does not exist yet, so that :meth:`open` reads them back.

        Further files next to ``target`` are synced here; the caller syncs ``target``.

        Raises:
            InputError: the format cannot hold a token.
        """

    @abc.abstractmethod
    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:
        """Approximate size of the file in bytes; ``token_bytes`` is the length of all tokens together."""


def suffix_of(path: Path) -> str:
    """The suffix in lower case; for ``NAME.txt.gz`` that is ``.txt``."""
    return Path(unpacked_name(path.name).lower()).suffix


def unpacked_name(name: str) -> str:
    """The name of a file without the suffix of a compressed one, such as ``.gz``."""
    return Path(name).stem if Path(name).suffix.lower() in PACKED_SUFFIXES else name


def check_token(token: bytes, where: str) -> None:
    """Refuse a token that is too long; an empty one is a token like any other.

    Raises:
        InputError: with the limit.
    """
    if len(token) > TOKEN_LIMIT:
        raise InputError(
            f"{where}: a token of {len(token):,} bytes, limit {TOKEN_LIMIT:,}",
            remedy="check that it is a file of word vectors, or write it again",
        )


def check_dimension(dimension: int, where: str) -> None:
    """Refuse vectors with no numbers, or with absurdly many.

    Raises:
        InputError: with the limits.
    """
    if not 1 <= dimension <= DIMENSION_LIMIT:
        raise InputError(
            f"{where}: vectors of {dimension:,} numbers, accepted are 1 to {DIMENSION_LIMIT:,}",
            remedy="check that it is a file of word vectors",
        )
