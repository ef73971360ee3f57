"""Packs small integers into bytes without gaps, row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GROUP = 8
"""Values packed together: eight values of b bits fill b bytes exactly and fit in a 64-bit word."""

_STEPS = (np.uint16, np.uint32, np.uint64)
"""Word types for 2, 4 and 8 values."""


def packed_width(count: int, bits: int) -> int:
    """Bytes of a packed row, ⌈count·bits/8⌉.

    Args:
        count: values in a row.
        bits: bits of a value, 1 … 8.
    """
    assert count >= 0
    assert 1 <= bits <= 8
    return (count * bits + 7) // 8


def widest(count: int, width: int) -> int:
    """Most bits, 1 … 8, with which ``count`` values take exactly ``width`` bytes; 0 if there are none."""
    return max((bits for bits in range(1, 9) if packed_width(count, bits) == width), default=0)


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack each row into whole bytes, most significant bit first; the last byte is padded with zeros.

    Read as one big-endian number, a row has its first value in the top bits.

    Args:
        values: N×count, each below 2^bits.
        bits: bits of a value, 1 … 8.

    Returns:
        N×``packed_width(count, bits)`` bytes, always a copy.
    """
    rows, count = values.shape
    width = packed_width(count, bits)
    assert not values.size or int(values.max()) < 1 << bits
    if bits == 8:
        return values.copy(order="C")
    if bits == 4:
        packed = np.empty((rows, width), np.uint8)
        np.left_shift(values[:, 0::2], 4, out=packed)
        packed[:, : count // 2] |= values[:, 1::2]
        return packed
    # Neighbours are joined to pairs, pairs to fours and fours to eights, so that half of the work is on
    # two-byte words. The word of eight values has its 8·bits bits at the bottom.
    words: NDArray[np.unsignedinteger] = _filled(values, _GROUP)
    for step, dtype in enumerate(_STEPS):
        joined = words[:, 0::2].astype(dtype, order="C")
        joined <<= dtype(bits << step)
        joined |= words[:, 1::2]
        words = joined
    groups = words.shape[1]
    parts = words.astype(">u8").view(np.uint8).reshape(rows, groups, 8)[:, :, 8 - bits :]
    return np.ascontiguousarray(parts.reshape(rows, groups * bits)[:, :width])


def unpack(codes: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    """Undo ``pack``; padding bits are ignored.

    Args:
        codes: N×``packed_width(count, bits)`` bytes.
        count: values in a row.
        bits: bits of a value, 1 … 8.

    Returns:
        N×count, always a copy.
    """
    rows, width = codes.shape
    assert width == packed_width(count, bits)
    if bits == 8:
        return codes.copy(order="C")
    if bits == 4:
        values = np.empty((rows, count), np.uint8)
        np.right_shift(codes, 4, out=values[:, 0::2])
        np.bitwise_and(codes[:, : count // 2], 15, out=values[:, 1::2])
        return values
    groups = -(-count // _GROUP)
    parts = np.zeros((rows, groups, 8), np.uint8)
    parts[:, :, 8 - bits :] = _filled(codes, bits).reshape(rows, groups, bits)
    words: NDArray[np.unsignedinteger] = parts.reshape(rows, 8 * groups).view(">u8").astype(np.uint64)
    for step, dtype in reversed([*enumerate((np.uint8, np.uint16, np.uint32))]):
        shift = words.dtype.type(bits << step)
        halves = np.empty((rows, 2 * words.shape[1]), dtype)
        halves[:, 0::2] = words >> shift
        halves[:, 1::2] = words & ((words.dtype.type(1) << shift) - words.dtype.type(1))
        words = halves
    return np.ascontiguousarray(words[:, :count], dtype=np.uint8)


def _filled(values: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Pad rows with zeros to a multiple of ``multiple`` columns; copies only if needed."""
    missing = -values.shape[1] % multiple
    return np.pad(values, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(values)
