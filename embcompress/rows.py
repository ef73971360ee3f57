"""Matrices that are read in blocks of rows, since a table may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DType

BLOCK_BYTES = 12 << 20
"""Bytes of a block in float32: enough for matrix products at full speed, and little memory."""


@dataclass(frozen=True)
class Rows:
    """A matrix that is read in blocks of rows.

    Attributes:
        shape: (rows, columns).
        dtype: element type in which it is stored.
        read: ``read(start, stop)`` returns those rows: floats, or integers if it holds codes.
    """

    shape: tuple[int, int]
    dtype: DType
    read: Callable[[int, int], NDArray[Any]] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the whole matrix."""
        return self.dtype.nbytes(self.shape[0] * self.shape[1])

    @property
    def block_rows(self) -> int:
        """Number of rows in a block."""
        return max(1, BLOCK_BYTES // (4 * max(1, self.shape[1])))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of consecutive blocks."""
        for start in range(0, self.shape[0], self.block_rows):
            yield start, min(start + self.block_rows, self.shape[0])

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the matrix block by block."""
        for start, stop in self.spans():
            yield self.read(start, stop)


def wide(rows: Rows) -> Rows:
    """Return the same matrix, read as float64."""

    def read(start: int, stop: int) -> NDArray[Any]:
        with np.errstate(invalid="ignore"):  # NaN of any kind is left to whoever reads it
            return rows.read(start, stop).astype(np.float64)

    return Rows(rows.shape, rows.dtype, read)


def filled_up(rows: Rows) -> Rows:
    """Return the same matrix with zeros in place of NaN and infinity."""

    def read(start: int, stop: int) -> NDArray[Any]:
        block = rows.read(start, stop)
        block[~np.isfinite(block)] = 0
        return block

    return Rows(rows.shape, rows.dtype, read)


def within(rows: Rows, largest: float) -> Rows:
    """Return the same matrix with finite numbers clipped to ±``largest``; infinity and NaN stay."""

    def read(start: int, stop: int) -> NDArray[Any]:
        block = rows.read(start, stop)
        larger = np.isfinite(block) & (np.abs(block) > largest)
        return np.where(larger, np.copysign(largest, block), block) if larger.any() else block

    return Rows(rows.shape, rows.dtype, read)


def count_nonfinite(rows: Rows) -> int:
    """Count the numbers of a matrix that are NaN or infinite, in one pass."""
    return sum(block.size - int(np.count_nonzero(np.isfinite(block))) for block in rows.blocks())


def keep_freed_memory() -> None:
    """Let the arrays of each block reuse the memory of the block before.

    By default glibc maps each large array anew, and the kernel zeroes it; that takes a tenth of the
    time of a large table. Once a mapping of a size has been freed, glibc reuses memory for arrays up to
    that size, 32 MB at most (mallopt(3), M_MMAP_THRESHOLD). Other allocators are not affected.
    """
    np.empty(31 << 20, np.uint8)
