"""Matrices that are read by blocks of rows, since a table may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DType

BLOCK_BYTES = 12 << 20
"""Float32 bytes read at a time: matrix products reach their full speed, memory stays small."""


@dataclass(frozen=True)
class Rows:
    """A matrix that is read by blocks of rows.

    Attributes:
        shape: (rows, columns).
        dtype: element type it is stored in.
        read: ``read(start, stop)`` gives those rows, floats unless it is a part of integer codes.
    """

    shape: tuple[int, int]
    dtype: DType
    read: Callable[[int, int], NDArray[Any]] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix as stored."""
        return self.dtype.nbytes(self.shape[0] * self.shape[1])

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK_BYTES // (4 * max(1, self.shape[1])))

    def spans(self) -> Iterator[tuple[int, int]]:
        """The (start, stop) of consecutive blocks."""
        for start in range(0, self.shape[0], self.block_rows):
            yield start, min(start + self.block_rows, self.shape[0])

    def blocks(self) -> Iterator[NDArray[Any]]:
        """The matrix, block by block."""
        for start, stop in self.spans():
            yield self.read(start, stop)


def wide(rows: Rows) -> Rows:
    """The same matrix, read as float64."""
    return Rows(rows.shape, rows.dtype, lambda start, stop: rows.read(start, stop).astype(np.float64))


def filled_up(rows: Rows) -> Rows:
    """The same matrix with zeros for what is NaN or infinite."""

    def read(start: int, stop: int) -> NDArray[Any]:
        block = rows.read(start, stop)
        block[~np.isfinite(block)] = 0
        return block

    return Rows(rows.shape, rows.dtype, read)


def within(rows: Rows, largest: float) -> Rows:
    """The same matrix, finite numbers that are larger brought to ``largest``; infinite ones stay."""

    def read(start: int, stop: int) -> NDArray[Any]:
        block = rows.read(start, stop)
        larger = np.isfinite(block) & (np.abs(block) > largest)
        return np.where(larger, np.copysign(largest, block), block) if larger.any() else block

    return Rows(rows.shape, rows.dtype, read)


def count_nonfinite(rows: Rows) -> int:
    """How many numbers of a matrix are NaN or infinite, in one pass."""
    return sum(block.size - int(np.count_nonzero(np.isfinite(block))) for block in rows.blocks())


def keep_freed_memory() -> None:
    """Let the arrays of one block reuse the memory of the block before.

    glibc maps large arrays anew each time, and the kernel zeroes them, until a mapping of their
    size has been freed once (mallopt(3), M_MMAP_THRESHOLD); 32 MB is the most it learns. That is
    a tenth of the time a large table takes. Other allocators are not affected.
    """
    np.empty(31 << 20, np.uint8)
