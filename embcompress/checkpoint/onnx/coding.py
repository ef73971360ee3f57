"""Numbers that lie in bytes, taken out with the standard operators of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.onnx.building import Group, Stored
from embcompress.dtypes import DTYPES, DType

F32 = DTYPES["F32"]

CODES_OPSET = 11
"""First opset with all that codes need: negative axes, CumSum, ScatterElements."""

MOST_BITS = 7
"""Bits of an integer that take the most constants, for where the true number is not known yet."""


def wider(one: DType, other: DType) -> DType:
    """A type that holds the values of both."""
    if one == other:
        return one
    return max(one, other, key=lambda d: d.bits) if one.bits != other.bits else F32


def scaled_integers(
    group: Group, factor: str, ids: str | None, stored: Stored, columns: int, bits: int
) -> str:
    """Rows of integers q times a scale each, scale · (q - (2^b - 1)/2); all rows where there are no ids."""
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
    """The numbers of so many bits (0 … 9) that start at these bits of rows of ``width`` bytes.

    The most significant bit comes first. Bytes and numbers are whole ones in float32: there are no shifts
    and masks of bits before opset 18, whole division is slow, and products with powers of two are exact.
    """
    first, place = np.minimum(starts >> 3, width - 1), starts & 7
    room = 8
    if (place + bits).max(initial=0) > 8:  # some lie in two neighbouring bytes
        after = group.constant(np.minimum(np.arange(width) + 1, width - 1), "I32")
        after = group.add("Gather", octets, after, axis=-1)
        octets = group.add("Add", group.add("Mul", octets, group.constant(256, "F32")), after)
        room = 16
    found = group.add("Gather", octets, group.constant(first, "I32"), axis=-1)
    found = group.add("Mul", found, group.constant(0.5 ** (room - place), "F32"))
    found = group.add("Sub", found, group.add("Floor", found))
    return group.add("Floor", group.add("Mul", found, group.constant(2.0**bits, "F32")))


def flags(group: Group, part: str, count: int) -> str:
    """The first bits of a part of bytes as a line of int32; runtimes work it out once, on loading."""
    wide = group.add("Cast", part, to=6)
    each = group.add("Div", wide, group.constant(1 << np.arange(7, -1, -1), "I32"))
    each = group.add("Mod", each, group.constant(2, "I32"))
    line = group.add("Reshape", each, group.constant([-1], "I64"))
    return group.add("Slice", line, *(group.constant([at], "I64") for at in (0, count)))
