"""Product-quantized matrices of .ftz models: a byte per group of numbers, and optionally one for the norm.

Joulin et al. 2016, section 3 (FastText.zip); ``QuantMatrix`` and ``ProductQuantizer`` of fastText.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embcompress.errors import InputError
from embcompress.storage.rawio import read_at, read_exact

_CENTROIDS = 256
_MATRIX = struct.Struct("<b2qi")
_QUANTIZER = struct.Struct("<4i")


Books = tuple[NDArray[np.float32], ...]
"""Centroids of each group of numbers in a row (256 × its numbers); the last group may have fewer numbers."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix in a file.

    Attributes:
        shape: (rows, numbers per row) of what it decodes to.
        codes: offset of the codes.
        books: their codebooks; a row has a byte for each.
        norm_codes: offset of the codes of norms; None if norms are not coded by themselves.
        norms: centroids of the norms (256 × 1), if they are.
        end: offset of the first byte after it.
    """

    shape: tuple[int, int]
    codes: int
    books: Books
    norm_codes: int | None
    norms: NDArray[np.float32] | None
    end: int

    def rows(self, fd: int, start: int, stop: int, where: str) -> NDArray[np.float32]:
        """Decode rows ``start:stop``."""
        width = len(self.books)
        codes = np.empty((stop - start, width), np.uint8)
        read_exact(fd, self.codes + start * width, codes, where)
        found = np.concatenate([book[codes[:, place]] for place, book in enumerate(self.books)], axis=1)
        if self.norm_codes is not None and self.norms is not None:
            norms = np.empty(stop - start, np.uint8)
            read_exact(fd, self.norm_codes + start, norms, where)
            found *= self.norms[norms]
        return found


def read_quantized(fd: int, offset: int, where: str) -> QuantizedMatrix:
    """Read the codebooks of the matrix at ``offset``, and check that its codes are there.

    Raises:
        InputError: it is cut short, or its sizes do not fit each other.
    """
    has_norms, rows, columns, size = _unpacked(_MATRIX, fd, offset, where)
    codes = offset + _MATRIX.size
    if rows < 1 or size < 0 or has_norms not in (0, 1):
        raise _misfit(where, f"{rows:,} rows and {size:,} codes")
    books, end = _read_books(fd, codes + size, columns, where)
    if size != rows * len(books):
        raise _misfit(where, f"{size:,} codes, {len(books)} for each of {rows:,} rows")
    if not has_norms:
        return QuantizedMatrix((rows, columns), codes, books, None, None, end)
    (norms,), after = _read_books(fd, end + rows, 1, where)
    return QuantizedMatrix((rows, columns), codes, books, end, norms, after)


def _read_books(fd: int, offset: int, columns: int, where: str) -> tuple[Books, int]:
    """The codebooks at ``offset``, and the offset of the first byte after them."""
    dimension, groups, group, last = _unpacked(_QUANTIZER, fd, offset, where)
    fits = dimension == columns >= 1 and group >= 1 and groups == -(-columns // group)
    if not fits or last != columns - group * (groups - 1):
        sizes = f"{groups} groups of {group} numbers, the last of {last}"
        raise _misfit(where, f"{sizes}, for {dimension} of {columns} columns")
    offset += _QUANTIZER.size
    found = read_at(fd, 4 * _CENTROIDS * columns, offset)
    if len(found) < 4 * _CENTROIDS * columns:
        raise _cut(where, offset + len(found))
    numbers = np.frombuffer(found, "<f4").astype(np.float32)
    books = tuple(
        numbers[_CENTROIDS * begin : _CENTROIDS * min(begin + group, columns)].reshape(_CENTROIDS, -1)
        for begin in range(0, columns, group)
    )
    return books, offset + len(found)


def _unpacked(layout: struct.Struct, fd: int, offset: int, where: str) -> tuple[int, ...]:
    # An offset that a header claims may be larger than any that the system takes.
    found = read_at(fd, layout.size, offset) if offset < 1 << 62 else b""
    if len(found) < layout.size:
        raise _cut(where, offset + len(found))
    return layout.unpack(found)


def _cut(where: str, end: int) -> InputError:
    return InputError(
        f"{where}: is cut short at byte {end:,} in a quantized matrix", remedy="download it again"
    )


def _misfit(where: str, sizes: str) -> InputError:
    return InputError(
        f"{where}: a quantized matrix of {sizes}, which do not fit each other",
        remedy="download it again, or quantize the model again with fastText",
    )
