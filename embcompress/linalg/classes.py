"""The class of each row in a few bits, and how many rows of each class are before a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STRIDE = 4096
"""Rows for which the classes are counted once."""

_CHUNK = 256 * _STRIDE
"""Rows whose classes are unpacked at a time."""


def class_planes(classes: int) -> int:
    """Bits that tell so many classes apart."""
    return (classes - 1).bit_length()


def packed_classes(numbers: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """Pack the class of each row (n), 0 … ``classes`` - 1.

    Returns:
        One plane of ⌈n/8⌉ bytes for each bit of the numbers, the lowest first. In a plane the first row has
        the most significant bit.
    """
    planes = [np.packbits(numbers >> bit & 1) for bit in range(class_planes(classes))]
    return np.concatenate(planes) if planes else np.empty(0, np.uint8)


class RowClasses:
    """The classes of ``count`` rows, with a running count of each class every 4,096 rows.

    A directory like that of a succinct bit vector (Jacobson 1989, "Space-efficient static trees and graphs"),
    so that the running counts take few bytes next to the classes.

    Args:
        planes: as from ``packed_classes``; bits from ``count`` on are ignored.
        count: number of rows.
        classes: number of classes, 1 or more.

    Raises:
        ValueError: there are too few or too many bytes, or a row is in a class beyond the last.
    """

    def __init__(self, planes: NDArray[np.uint8], count: int, classes: int) -> None:
        shape = class_planes(classes), -(-count // 8)
        if planes.size != shape[0] * shape[1]:
            raise ValueError(
                f"{planes.size:,} bytes for the classes of {count:,} rows, not {shape[0] * shape[1]:,}"
            )
        self._planes, self.count, self.classes = planes.reshape(shape), count, classes
        sums = [np.zeros((1, classes), np.int64)]
        for start in range(0, count, _CHUNK):
            numbers = self.span(start, min(start + _CHUNK, count))
            if numbers.max(initial=0) >= classes:
                raise ValueError(f"a row is in class {numbers.max()}, beyond {classes - 1}")
            sums += [self._counted(numbers[i : i + _STRIDE])[None] for i in range(0, len(numbers), _STRIDE)]
        self._before = np.cumsum(np.concatenate(sums), axis=0)

    def span(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Class of each of the rows ``start:stop``."""
        first = start >> 3
        numbers = np.zeros(stop - start, np.uint8)
        for bit, plane in enumerate(self._planes):
            bits = np.unpackbits(plane[first : (stop + 7) >> 3])
            numbers |= bits[start - 8 * first : stop - 8 * first] << bit
        return numbers

    def before(self, row: int) -> NDArray[np.int64]:
        """How many rows of each class (c) are before this one."""
        block = row // _STRIDE
        counts: NDArray[np.int64] = self._before[block] + self._counted(self.span(block * _STRIDE, row))
        return counts

    @property
    def totals(self) -> NDArray[np.int64]:
        """Rows of each class (c)."""
        counts: NDArray[np.int64] = self._before[-1]
        return counts

    def _counted(self, numbers: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.bincount(numbers, minlength=self.classes)
