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


@dataclass(frozen=True)
class Quantizer:
    """The codebooks of a matrix.

    Attributes:
        group: numbers coded by a byte; the last group of a row may have fewer.
        groups: bytes per row.
        books: centroids of each group (256 × its numbers).
    """

    group: int
    groups: int
    books: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix in a file.

    Attributes:
        shape: (rows, numbers per row) of what it decodes to.
        codes: offset of the codes.
        quantizer: their codebooks.
        norm_codes: offset of the codes of norms; None if norms are not coded by themselves.
        norms: centroids of the norms (256 × 1), if they are.
        end: offset of the first byte after it.
    """

    shape: tuple[int, int]
    codes: int
    quantizer: Quantizer
    norm_codes: int | None
    norms: NDArray[np.float32] | None
    end: int

    def rows(self, fd: int, start: int, stop: int, where: str) -> NDArray[np.float32]:
        """Decode rows ``start:stop``."""
        books, width = self.quantizer.books, self.quantizer.groups
        codes = np.empty((stop - start, width), np.uint8)
        read_exact(fd, self.codes + start * width, codes, where)
        found = np.concatenate([book[codes[:, place]] for place, book in enumerate(books)], axis=1)
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
    quantizer, end = _read_quantizer(fd, codes + size, columns, where)
    if size != rows * quantizer.groups:
        raise _misfit(where, f"{size:,} codes, {quantizer.groups} for each of {rows:,} rows")
    if not has_norms:
        return QuantizedMatrix((rows, columns), codes, quantizer, None, None, end)
    norms, after = _read_quantizer(fd, end + rows, 1, where)
    return QuantizedMatrix((rows, columns), codes, quantizer, end, norms.books[0], after)


def _read_quantizer(fd: int, offset: int, columns: int, where: str) -> tuple[Quantizer, int]:
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
    books = [
        numbers[_CENTROIDS * begin : _CENTROIDS * min(begin + group, columns)].reshape(_CENTROIDS, -1)
        for begin in range(0, columns, group)
    ]
    return Quantizer(group, groups, tuple(books)), offset + len(found)


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
