"""Rows of a table in a graph, from ids and stored parts: one function a kind of parts, and the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.onnx.building import Group, Stored
from embcompress.dtypes import DTYPES, DType
from embcompress.errors import InputError, UsageError
from embcompress.linalg.packing import widest
from embcompress.methods.pq.graph_code import GraphCode

F32 = DTYPES["F32"]

CODES_OPSET = 11
"""First opset with all that codes need: negative axes, CumSum, ScatterElements."""

Lookup = Callable[[Group, str, Stored], tuple[str, DType]]
"""Adds what computes the rows of these ids; their name and element type."""

_MOST = 7
"""Bits that take the most constants, for where the true ones are not known yet."""


def factors(group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
    """A left factor (V×r) and a transposed right one (d×r)."""
    dtype = stored.parts["0.weight"].dtype
    wide = wider(dtype, stored.dtype)
    rows = group.cast(group.add("Gather", stored.part("0.weight"), ids, axis=0), dtype, wide)
    turned = group.add("Transpose", group.cast(stored.part("1.weight"), dtype, wide), perm=[1, 0])
    return group.add("MatMul", rows, turned), wide


def dense(group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
    """The rows as they are."""
    part = stored.parts["0.weight"]
    return group.add("Gather", part.name, ids, axis=0), part.dtype


def integers(group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
    """Packed integers (V×⌈d·b/8⌉) and a scale a row (V×1)."""
    named = (stored.method or "").rpartition("+")[2].removeprefix("int")
    bits = int(named) if named.isdigit() else _MOST
    return _scaled(group, "0", ids, stored, stored.shape[1], bits), F32


def two_integers(group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
    """Both factors in integers of their own bits.

    Raises:
        InputError: no integers have so many.
    """
    known = stored.content("0.bits")
    left, right = (_MOST, _MOST) if known is None else (int(bits) for bits in known[0])
    if not (1 <= left <= 8 and 1 <= right <= 8):
        raise InputError(f"factors of {left} and {right} bits", remedy="make the file again from its source")
    rank = stored.parts["1.codes"].shape[0]
    rows = _scaled(group, "0", ids, stored, rank, left)
    return group.add("MatMul", rows, _scaled(group, "1", None, stored, stored.shape[1], right)), F32


def trellis(group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
    """Rows of bits, of one class or of two, times a right factor in integers."""
    count, rank = stored.parts["0.rates"].shape
    rows, width = stored.parts["0.codes"].shape
    rates = stored.content("0.rates")
    # Many bits for all and a pair more take the most nodes and constants.
    doubled = [np.array([14] * rank + [1, 1])] * count if rates is None else [*rates.astype(np.int64)]
    books = group.add("Reshape", stored.part("0.codebooks"), group.constant([-1], "I64"))
    octets = group.add("Cast", group.add("Gather", stored.part("0.codes"), ids, axis=0), to=1)
    found, begin = "", 0
    for each in range(count):
        code = GraphCode(doubled[each])
        hot = ""
        if each:
            bits = _bits(group, stored.part("0.hot"), rows)
            hot = group.add("Gather", bits, ids, axis=0)
            before = group.add("CumSum", bits, group.constant(0, "I64"), exclusive=1)
            place = group.add("Mul", group.add("Gather", before, ids, axis=0), hot)  # 0 for the others
            extra = group.add("Gather", stored.part("0.extra"), place, axis=0)
            octets = group.add("Concat", octets, group.add("Cast", extra, to=1), axis=-1)
            width += stored.parts["0.extra"].shape[1]
        values = _levels(group, octets, width, code, books, begin)
        begin += code.book_size
        values = group.add("Gather", values, group.constant(code.places, "I32"), axis=-1)
        scales = group.add("Gather", stored.part("0.scales"), group.constant(each, "I64"), axis=0)
        scales = group.add("Mul", scales, group.constant(code.is_coded, "F32"))
        values = group.add("Mul", values, scales)
        if hot:
            chosen = group.add("Cast", group.last_axis(hot), to=9)
            values = group.add("Where", chosen, values, found)
        found = values
    if "0.zeros" in stored.parts:
        found = group.add("Mul", found, _not_zero(group, ids, stored, rows))
    right_width = stored.parts["1.codes"].shape[1]
    columns = stored.shape[1]
    right = widest(columns, right_width) or _MOST
    return group.add("MatMul", found, _scaled(group, "1", None, stored, columns, right)), F32


def screened(group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
    """A bit a token says which keep a row of their own; row 0 of what is left is shared by the others."""
    bits = _bits(group, stored.part("0.kept"), stored.shape[0])
    places = group.add("Mul", group.add("CumSum", bits, group.constant(0, "I64")), bits)
    left = {suffix: part for suffix, part in stored.parts.items() if suffix != "0.kept"}
    return lookup_of(replace(stored, parts=left))(group, group.add("Gather", places, ids, axis=0), stored)


def wider(one: DType, other: DType) -> DType:
    """A type that holds the values of both."""
    if one == other:
        return one
    return max(one, other, key=lambda d: d.bits) if one.bits != other.bits else F32


def _scaled(group: Group, factor: str, ids: str | None, stored: Stored, columns: int, bits: int) -> str:
    """Rows of integers q times a scale each, scale · (q - (2^b - 1)/2); all rows where there are no ids."""
    codes, scales = (stored.parts[f"{factor}.{kind}"] for kind in ("codes", "scales"))
    octets, each = codes.name, scales.name
    if ids is not None:
        octets, each = (group.add("Gather", part, ids, axis=0) for part in (octets, each))
    numbers = group.add("Cast", octets, to=1)
    if bits < 8:
        starts = bits * np.arange(columns)
        numbers = _fields(group, numbers, codes.shape[1], starts, np.full(columns, bits))
    levels = group.add("Sub", numbers, group.constant((2**bits - 1) / 2, "F32"))
    return group.add("Mul", levels, group.cast(each, scales.dtype, F32))


def _fields(group: Group, octets: str, width: int, starts: NDArray[Any], bits: NDArray[Any]) -> str:
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


def _levels(group: Group, octets: str, width: int, code: GraphCode, books: str, begin: int) -> str:
    """Decoded coefficients of the components that have bits, in the order they are coded in, as float32."""
    parts = []
    if code.scalars:
        windows = _fields(group, octets, width, code.windows[: code.scalars], np.full(code.scalars, 9))
        subsets = group.add("Gather", group.constant(code.subsets, "F32"), group.add("Cast", windows, to=6))
        uncoded = _fields(group, octets, width, code.uncoded, code.uncoded_bits)
        index = group.add("Mul", uncoded, group.constant(4, "F32"))
        index = group.add("Add", index, subsets)
        parts.append(group.add("Add", index, group.constant(begin + code.bases[: code.scalars], "F32")))
    pairs = len(code.windows) - code.scalars
    if pairs:
        windows = _fields(group, octets, width, code.windows[code.scalars :], np.full(pairs, 9))
        index = group.add("Mul", windows, group.constant(2, "F32"))
        parts.append(group.add("Add", index, group.constant(begin + code.bases[code.scalars :], "F32")))
    index = parts[0] if len(parts) == 1 else group.add("Concat", *parts, axis=-1)
    index = group.add("Cast", index, to=6)
    return group.add("Cast", group.add("Gather", books, index, axis=0), to=1)


def _bits(group: Group, part: str, count: int) -> str:
    """The first bits of a part of bytes as a line of int32; runtimes work it out once, on loading."""
    wide = group.add("Cast", part, to=6)
    each = group.add("Div", wide, group.constant(1 << np.arange(7, -1, -1), "I32"))
    each = group.add("Mod", each, group.constant(2, "I32"))
    line = group.add("Reshape", each, group.constant([-1], "I64"))
    return group.add("Slice", line, *(group.constant([at], "I64") for at in (0, count)))


def _not_zero(group: Group, ids: str, stored: Stored, rows: int) -> str:
    """0 for the rows that are all zero, 1 for the others."""
    zeros = stored.parts["0.zeros"]
    ones = group.add("Expand", group.constant(1, "F32"), group.constant([rows], "I64"))
    none = group.add("Expand", group.constant(0, "F32"), group.constant([zeros.shape[0]], "I64"))
    places = group.add("Reshape", zeros.name, group.constant([-1], "I64"))
    mask = group.add("ScatterElements", ones, places, none, axis=0)
    return group.last_axis(group.add("Gather", mask, ids, axis=0))


@dataclass(frozen=True)
class _Kind:
    """Parts that a lookup needs, and those that it can do without."""

    needed: frozenset[str]
    optional: frozenset[str]
    lookup: Lookup
    opset: int = CODES_OPSET


_TRELLIS = {"0.codes", "0.rates", "0.codebooks", "0.scales", "1.codes", "1.scales"}
_LPLR = {"0.codes", "0.scales", "1.codes", "1.scales", "0.bits"}

KINDS = (
    _Kind(frozenset({"0.weight", "1.weight"}), frozenset(), factors, 7),
    _Kind(frozenset({"0.weight"}), frozenset(), dense, 7),
    _Kind(frozenset({"0.codes", "0.scales"}), frozenset(), integers),
    _Kind(frozenset(_LPLR), frozenset(), two_integers),
    _Kind(frozenset(_TRELLIS), frozenset({"0.extra", "0.hot", "0.zeros"}), trellis),
)
"""By the suffixes of the parts; any may stand behind a screen."""


def lookup_of(stored: Stored) -> Lookup:
    """How rows are computed from the parts of a table.

    Raises:
        UsageError: there is no way yet, or the model's operators are too old.
    """
    suffixes = frozenset(stored.parts)
    if "0.kept" in suffixes:
        stored.needs(CODES_OPSET)
        return screened
    for kind in KINDS:
        if kind.needed <= suffixes <= kind.needed | kind.optional:
            stored.needs(kind.opset)
            return kind.lookup
    raise UsageError(
        f"{stored.where}: what this method stores for {stored.name} ({', '.join(stored.parts)}) cannot stand "
        "in an ONNX graph yet",
        remedy="choose --method svd",
    )
