"""Extracts numbers from packed bytes with the standard operators of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.onnx.building import Group, Stored
from embcompress.dtypes import DTYPES, DType

F32 = DTYPES["F32"]

CODES_OPSET = 11
"""First opset with all operators that codes need: negative axes, CumSum, ScatterElements."""

MOST_BITS = 7
"""Bits of an integer that need the most constants; used while the true number is not known."""


def wider(one: DType, other: DType) -> DType:
    """A type that holds the values of both types."""
    if one == other:
        return one
    return max(one, other, key=lambda d: d.bits) if one.bits != other.bits else F32


def scaled_integers(
    group: Group, factor: str, ids: str | None, stored: Stored, columns: int, bits: int
) -> str:
    """Add nodes that decode rows of integers q to scale · (q - (2^b - 1)/2); all rows if ``ids`` is None.

    Args:
        group: the nodes are added to it.
        factor: ``"0"`` or ``"1"``, the first part of the suffixes.
        ids: name of the value that holds the ids (any shape).
        stored: the table and its parts.
        columns: integers in a row.
        bits: bits of an integer, b.

    Returns:
        Name of the rows (…×``columns``) in float32.
    """
    codes, scales = (stored.parts[f"{factor}.{kind}"] for kind in ("codes", "scales"))
    octets, each = codes.name, scales.name
    if ids is not None:
        octets, each = (group.add("Gather", part, ids, axis=0) for part in (octets, each))
    numbers = group.add("Cast", octets, to=1)
    if bits < 8:
        starts = bits * np.arange(columns)
        numbers = bit_fields(group, numbers, codes.shape[1], starts, np.full(columns, bits))
    levels = group.add("Sub", numbers, group.constant((2**bits - 1) / 2, "F32"))
    return group.add("Mul", levels, group.cast(each, scales.dtype, F32))


def bit_fields(group: Group, octets: str, width: int, starts: NDArray[Any], bits: NDArray[Any]) -> str:
    """Add nodes that extract one number of ``bits`` bits (0 … 9) from each position in rows of bytes.

    The most significant bit comes first. Bytes and numbers are integers in float32: before opset 18 there are
    no bit masks, integer division is slow, and products with powers of two are exact.

    Args:
        group: the nodes are added to it.
        octets: name of the rows (…×``width``) in float32.
        width: bytes in a row.
        starts: first bit of each number (n).
        bits: bits of each number (n).

    Returns:
        Name of the numbers (…×n) in float32.
    """
    first, place = np.minimum(starts >> 3, width - 1), starts & 7
    room = 8
    if (place + bits).max(initial=0) > 8:  # some span two neighbouring bytes
        after = group.constant(np.minimum(np.arange(width) + 1, width - 1), "I32")
        after = group.add("Gather", octets, after, axis=-1)
        octets = group.add("Add", group.add("Mul", octets, group.constant(256, "F32")), after)
        room = 16
    found = group.add("Gather", octets, group.constant(first, "I32"), axis=-1)
    found = group.add("Mul", found, group.constant(0.5 ** (room - place), "F32"))
    found = group.add("Sub", found, group.add("Floor", found))
    return group.add("Floor", group.add("Mul", found, group.constant(2.0**bits, "F32")))


def flags(group: Group, part: str, count: int) -> str:
    """Add nodes that unpack the first ``count`` bits of a part to a vector of int32.

    Runtimes compute it once, when they load the model, since it depends on constants only.
    """
    wide = group.add("Cast", part, to=6)
    each = group.add("Div", wide, group.constant(1 << np.arange(7, -1, -1), "I32"))
    each = group.add("Mod", each, group.constant(2, "I32"))
    line = group.add("Reshape", each, group.constant([-1], "I64"))
    return group.add("Slice", line, *(group.constant([at], "I64") for at in (0, count)))
