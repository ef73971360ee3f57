"""A NumPy matrix NAME.npy with its tokens in NAME.vocab.txt, one per line, in the same directory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from embcompress.checkpoint.names import check_not_pointer
from embcompress.checkpoint.vectors.base import (
    AGAIN,
    StoredVectors,
    VectorFormat,
    Written,
    check_dimension,
    check_token,
    suffix_of,
)
from embcompress.checkpoint.vectors.stream import Stream, read_head
from embcompress.dtypes import DTYPES, DType
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress
from embcompress.storage.rawio import read_exact
from embcompress.storage.regular import open_regular, opened

_HEADER_LIMIT = 10_000
"""Longest header accepted, in bytes; this is also NumPy's limit."""
_KINDS = {"f2": "F16", "f4": "F32", "f8": "F64"}
_VERSIONS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
"""Header readers by version of the format; version 3 exists only for records with named fields."""


class Npy(VectorFormat):
    """A matrix of float16, float32 or float64, in C or Fortran order, and its vocabulary."""

    name = "NumPy matrix"
    suffixes = (".npy",)

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Recognize the suffix or the magic bytes."""
        return bool(head) and (suffix_of(path) == ".npy" or head.startswith(npy_format.MAGIC_PREFIX))

    def files(self, path: Path) -> tuple[Path, ...]:
        """The matrix and its vocabulary.

        Raises:
            UsageError: there is no vocabulary.
        """
        vocabulary = _vocabulary(path)
        if not vocabulary.is_file():
            raise UsageError(
                f"{path}: needs its tokens in {vocabulary.name} beside it", remedy="write them, one per line"
            )
        return path, vocabulary

    def open(self, path: Path, progress: Progress) -> StoredVectors:  # noqa: ARG002 - nothing is read yet
        """Open the matrix; its rows are read from the file on demand."""
        return _Matrix(*self.files(path))

    def write(self, target: Path, new: Written) -> None:
        """Write the matrix row by row, and the vocabulary."""
        with _vocabulary(target).open("xb") as vocabulary:

            def take(tokens: list[bytes]) -> None:
                vocabulary.writelines(b"%b\n" % token for token in tokens)

            write_matrix(target, new, take)
            vocabulary.flush()
            os.fsync(vocabulary.fileno())

    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:
        return 128 + dtype.nbytes(shape[0] * shape[1]) + token_bytes + shape[0]


def write_matrix(target: Path, new: Written, take: Callable[[list[bytes]], None]) -> None:
    """Write the rows to a .npy file, which does not exist yet, and sync it; ``take`` gets their tokens.

    Raises:
        InputError: the format has no such element type.
    """
    if new.dtype.name not in _KINDS.values():
        raise InputError(
            f"{target.name}: no NumPy matrix holds {new.dtype.torch}",
            remedy="make the compressed file again from its source",
        )
    header = {"descr": new.dtype.storage, "fortran_order": False, "shape": new.shape}
    with target.open("xb") as matrix:
        npy_format.write_array_header_1_0(matrix, header)
        for tokens, rows in new.entries():
            matrix.write(new.dtype.encode(rows).tobytes())
            take(tokens)
        matrix.flush()
        os.fsync(matrix.fileno())


def _vocabulary(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".npy") + ".vocab.txt")


class NpyMatrix:
    """A matrix in a .npy file.

    Attributes:
        shape: (rows, columns).
        dtype: element type.

    Raises:
        InputError: it is no matrix of floats.
    """

    def __init__(self, path: Path) -> None:
        self._header, self._path = _read_header(path), path
        self.shape = self._header.shape
        self.dtype = DTYPES[_KINDS[self._header.dtype.str[1:]]]
        self._fd = open_regular(path)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` as float32, or as float64 if they are stored so."""
        (rows, columns), header, size = self.shape, self._header, self._header.dtype.itemsize
        stored = np.empty((stop - start, columns), header.dtype, order="F" if header.is_fortran else "C")
        if header.is_fortran:
            for column in range(columns):
                place = header.offset + (column * rows + start) * size
                read_exact(self._fd, place, stored[:, column], str(self._path))
        else:
            read_exact(self._fd, header.offset + start * columns * size, stored, str(self._path))
        return self.dtype.decode(np.ascontiguousarray(stored, self.dtype.storage))

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Matrix(StoredVectors):
    """An opened matrix and its vocabulary."""

    def __init__(self, path: Path, vocabulary: Path) -> None:
        self._matrix, self._vocabulary = NpyMatrix(path), vocabulary
        self.shape, self.dtype = self._matrix.shape, self._matrix.dtype

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._matrix.rows(start, stop)

    def tokens(self) -> Iterator[bytes]:
        """The lines of the vocabulary."""
        count, rows = 0, self.shape[0]
        for number, token in enumerate(read_lines(self._vocabulary)):
            count = number + 1
            if count <= rows:
                yield token
        if count != rows:
            raise InputError(
                f"{self._vocabulary}: {count:,} lines, the matrix beside it has {rows:,} rows",
                remedy="write one token per line, in the order of the rows",
            )

    def close(self) -> None:
        self._matrix.close()


def read_lines(path: Path) -> Iterator[bytes]:
    """The tokens of a vocabulary file, one per line.

    Raises:
        InputError: a line is empty or too long, or the file is empty.
    """
    check_not_pointer(read_head(path), path)
    with Stream(path) as stream:
        for number, line in enumerate(stream.lines(), 1):
            token = line.removesuffix(b"\r")
            if not token:
                raise InputError(
                    f"{path}: line {number:,}: a vector without a token",
                    remedy="remove it, or write the file again",
                )
            check_token(token, f"{path}: line {number:,}")
            yield token


@dataclass(frozen=True)
class _Header:
    """A header that matches its file."""

    shape: tuple[int, int]
    is_fortran: bool
    dtype: np.dtype[Any]
    offset: int


def _read_header(path: Path) -> _Header:
    """Read the header and compare it with the file; nothing is ever unpickled."""
    with opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns about headers of Python 2, which are fine
        try:
            version = npy_format.read_magic(file)
            if version not in _VERSIONS:
                raise ValueError(f"version {version}")
            # NumPy reads as many bytes as the header claims before it checks its limit.
            width = 2 if version == (1, 0) else 4
            if (length := int.from_bytes(file.peek(width)[:width], "little")) > _HEADER_LIMIT:
                raise ValueError(f"a header of {length:,} bytes, limit {_HEADER_LIMIT:,}")
            shape, is_fortran, dtype = _VERSIONS[version](file)
            # NumPy lets through integers that are not sizes (True) or too long to print (hexadecimal).
            if not all(type(size) is int and size < 1 << 63 for size in shape):
                raise ValueError("a size that is not an integer below 2^63")
        except OSError:
            raise
        except Exception as error:  # a broken header can make NumPy raise almost anything
            raise InputError(f"{path}: is not a readable .npy file ({error})", remedy=AGAIN) from None
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    if dtype.str[1:] not in _KINDS:
        raise InputError(
            f"{path}: elements are {dtype}, supported are float16, float32 and float64",
            remedy="save the matrix with .astype(numpy.float32)",
        )
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(
            f"{path}: shape {list(shape)}, a matrix of (tokens, numbers) is expected", remedy=AGAIN
        )
    check_dimension(shape[1], str(path))
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if expected != size:
        raise InputError(
            f"{path}: shape {list(shape)} of {dtype} takes {expected:,} bytes, the file has {size:,}",
            remedy=AGAIN,
        )
    return _Header((shape[0], shape[1]), is_fortran, dtype, offset)
