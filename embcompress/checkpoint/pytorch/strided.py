"""Reads tensors whose elements are not next to each other in the file: transposed ones, or slices of others.

They are read and not mapped: a file that is cut short under a memory map kills the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.storage.rawio import read_exact

_WASTE = 2
"""Bytes read at most for each byte that is wanted, where one read takes them all."""
_CHEAP = 1 << 16
"""Bytes that take no longer to read than the call itself: they are read, whatever is wanted of them."""


def read_strided(
    fd: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, where: str
) -> NDArray[np.uint8]:
    """The bytes of each element of a tensor, in row-major order (numel × itemsize).

    Args:
        fd: file descriptor of the file.
        offset: position of its first element, in bytes.
        shape: number of elements along each dimension.
        strides: step between neighbours along each dimension, in bytes, not negative.
        itemsize: bytes of an element.
        where: name of the file, for error messages.

    Raises:
        InputError: the file ends too early.
    """
    # Dimensions of size 1 are dropped: their strides may be any number, and NumPy allows 64 dimensions.
    steps = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    out = np.empty((*(n for n, _ in steps), itemsize), np.uint8)
    if out.size:
        _fill(out, fd, offset, tuple(s for _, s in steps), where)
    return out.reshape(-1, itemsize)


def _fill(out: NDArray[Any], fd: int, offset: int, strides: tuple[int, ...], where: str) -> None:
    """Read all at once if that is small or dense enough, else split along the axis of the largest step."""
    itemsize = out.shape[-1]
    span = itemsize + sum((n - 1) * s for n, s in zip(out.shape, strides, strict=False))
    if span <= max(_WASTE * out.size, _CHEAP):
        read = np.empty(span, np.uint8)
        read_exact(fd, offset, read, where)
        out[...] = np.ndarray(out.shape, np.uint8, read, 0, (*strides, 1))
        return
    axis = max(range(len(strides)), key=lambda i: strides[i])
    rest = strides[:axis] + strides[axis + 1 :]
    for index in range(out.shape[axis]):
        _fill(np.moveaxis(out, axis, 0)[index], fd, offset + index * strides[axis], rest, where)
