"""Trellis-coded rows in an ONNX graph; ``linalg/trelliscode.py`` describes their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.checkpoint.onnx.coding import CODES_OPSET, F32, MOST_BITS, flags, scaled_integers
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.linalg.classes import RowClasses, class_planes
from embcompress.linalg.packing import widest
from embcompress.linalg.trelliscode import MEMORY, book_starts, code_of, coded_order
from embcompress.methods.base import Method
from embcompress.methods.parts import REMAKE


class TrellisGraph(TableGraph):
    """Trellis-coded rows of one class or of several, times a right factor in integers."""

    opset = CODES_OPSET

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Gather rows of bytes, decode their components, and multiply by the right factor."""
        shape, rates = stored.parts["0.rates"].shape, stored.content("0.rates")
        # If only sizes matter, the rates do not: all constants are there whatever they are.
        size = stored.parts["0.codebooks"].shape[1]
        places = (
            BitPlaces(np.full(shape, 2), None) if rates is None else BitPlaces(rates.astype(np.int64), size)
        )
        rows, width = stored.parts["0.codes"].shape
        octets, kinds = group.add("Gather", stored.part("0.codes"), ids, axis=0), ""
        if shape[0] > 1:
            kinds, extra = _extra_bytes(group, ids, stored, places.row_bytes - width)
            octets = group.add("Concat", octets, extra, axis=-1)
        found = _decoded(group, group.add("Cast", octets, to=1), kinds, stored, places)
        if "0.zeros" in stored.parts:
            found = group.add("Mul", found, _not_zero(group, ids, stored, rows))
        columns = stored.shape[1]
        right = widest(columns, stored.parts["1.codes"].shape[1]) or MOST_BITS
        return group.add("MatMul", found, scaled_integers(group, "1", None, stored, columns, right)), F32


class BitPlaces:
    """Where the bits of each component are in a row of each class, and where its codebook is.

    Args:
        doubled: twice the bits of each component (c×r); 0 for components that are not coded.
        size: numbers in all codebooks; None where it does not matter.

    Raises:
        InputError: no code has such bits, or other codebooks.
    """

    def __init__(self, doubled: NDArray[Any], size: int | None) -> None:
        try:
            codes = [code_of(each / 2) for each in doubled]
            starts = book_starts(codes, size)
        except ValueError as error:
            raise InputError(str(error), remedy=REMAKE) from None
        self.row_bytes = np.array([code.row_bytes for code in codes])
        """Bytes of a row in each class (c)."""
        self.windows, self.uncoded, self.books = np.zeros((3, *doubled.shape), np.int32)
        """First bit of the window, first uncoded bit, and place of the codebook (c×r), which for the second
        component of a pair is that of its second number; 0 for components that are not coded."""
        self.subsets = codes[0].subsets
        """Subset, 0 … 3, that each window selects."""
        for kind, code in enumerate(codes):
            order = coded_order(doubled[kind])
            self.windows[kind, order] = code.windows
            self.uncoded[kind, order] = code.uncoded_starts * (code.uncoded_bits > 0)
            self.books[kind, order] = [starts[kind][rate] for rate in code.rates]
            self.books[kind, order[code.scalars + 1 :: 2]] += 1


def _extra_bytes(group: Group, ids: str, stored: Stored, more: NDArray[np.int64]) -> tuple[str, str]:
    """The class of each id (…), and the bytes that its row has beyond those of class 0, then any others."""
    rows, size = stored.parts["0.codes"].shape[0], int(np.prod(stored.parts["0.extra"].shape))
    packed = stored.content("0.hot")
    totals = np.zeros(len(more), np.int64)
    if packed is not None:
        totals = RowClasses(packed.ravel(), rows, len(more)).totals
    # Runtimes compute the class of each row and its place once, when they load the model.
    planes = group.add(
        "Reshape", stored.part("0.hot"), group.constant([class_planes(len(more)), -1, 1], "I64")
    )
    kinds = ""
    for plane in range(class_planes(len(more))):
        bits = flags(group, group.add("Gather", planes, group.constant(plane, "I64")), rows)
        bits = group.add("Mul", bits, group.constant(1 << plane, "I32"))
        kinds = group.add("Add", kinds, bits) if kinds else bits
    places = ""
    for kind, start in enumerate(np.cumsum(more * totals)[:-1], start=1):
        is_kind = group.add("Cast", group.add("Equal", kinds, group.constant(kind, "I32")), to=7)
        nth = group.add("CumSum", is_kind, group.constant(0, "I64"), exclusive=1)
        place = group.add(
            "Add", group.add("Mul", nth, group.constant(more[kind], "I64")), group.constant(start, "I64")
        )
        place = group.add("Mul", place, is_kind)
        places = group.add("Add", places, place) if places else place
    first = group.last_axis(group.add("Gather", places, ids, axis=0))
    all_of_them = group.add("Add", first, group.constant(np.arange(max(more)), "I64"))
    # Fewer bytes than the most may be left after the last row.
    all_of_them = group.add(
        "Where",
        group.add("Less", all_of_them, group.constant(size, "I64")),
        all_of_them,
        group.constant(0, "I64"),
    )
    flat = group.add("Reshape", stored.part("0.extra"), group.constant([-1], "I64"))
    return group.add("Gather", kinds, ids, axis=0), group.add("Gather", flat, all_of_them, axis=0)


def _decoded(group: Group, octets: str, kinds: str, stored: Stored, places: BitPlaces) -> str:
    """Scaled coefficients (…×r) from rows of bytes (…×m); ``kinds`` is empty if all are of class 0."""
    last = group.add("Gather", octets, group.constant([0], "I64"), axis=-1)  # any byte
    after = group.add("Slice", octets, *(group.constant([at], "I64") for at in (1, 1 << 30, -1)))
    after = group.add("Concat", after, last, axis=-1)
    pairs = group.add("Add", group.add("Mul", octets, group.constant(256, "F32")), after)
    eight = group.constant(8, "F32")

    def of_class(table: str) -> str:
        """The row of a table (c×r) that belongs to each row of bytes (…×r), or the only one (r)."""
        if kinds:
            return group.add("Gather", table, kinds, axis=0)
        return group.add("Reshape", table, group.constant([-1], "I64"))

    def fields(starts: NDArray[np.int32], sizes: str) -> str:
        """Numbers below ``sizes`` from bit ``starts`` on, in float32: powers of two are exact."""
        start = group.add("Cast", group.constant(starts, "I32"), to=1)
        octet = group.add("Floor", group.add("Div", start, eight))
        behind = group.add("Sub", start, group.add("Mul", octet, eight))
        scale = group.add(
            "Pow", group.constant(2, "F32"), group.add("Sub", behind, group.constant(16, "F32"))
        )
        index = of_class(group.add("Cast", octet, to=7))
        found = (
            group.add("GatherElements", pairs, index, axis=-1)
            if kinds
            else group.add("Gather", pairs, index, axis=-1)
        )
        found = group.add("Mul", found, of_class(scale))
        found = group.add("Sub", found, group.add("Floor", found))
        return group.add("Floor", group.add("Mul", found, sizes))

    doubled = group.add("Cast", stored.part("0.rates"), to=1)
    half, one = group.constant(0.5, "F32"), group.constant(1, "F32")
    windows = fields(places.windows, group.constant(2 << MEMORY, "F32"))
    uncoded_bits = group.add("Relu", group.add("Sub", group.add("Mul", doubled, half), one))
    uncoded = fields(places.uncoded, of_class(group.add("Pow", group.constant(2, "F32"), uncoded_bits)))
    uncoded = group.add("Mul", uncoded, group.constant(4, "F32"))
    chosen = group.add("Cast", windows, to=6)
    subsets = group.add("Cast", group.add("Gather", group.constant(places.subsets, "U8"), chosen), to=1)
    is_pair = of_class(group.add("Equal", stored.part("0.rates"), group.constant(1, "U8")))
    twice = group.add("Add", windows, windows)
    index = group.add("Add", group.add("Where", is_pair, twice, subsets), uncoded)
    index = group.add("Add", index, of_class(group.add("Cast", group.constant(places.books, "I16"), to=1)))
    books = group.add("Reshape", stored.part("0.codebooks"), group.constant([-1], "I64"))
    values = group.add("Cast", group.add("Gather", books, group.add("Cast", index, to=6)), to=1)
    is_coded = group.add("Cast", group.add("Cast", stored.part("0.rates"), to=9), to=1)
    return group.add("Mul", values, of_class(group.add("Mul", stored.part("0.scales"), is_coded)))


def _not_zero(group: Group, ids: str, stored: Stored, rows: int) -> str:
    """0 for rows of zeros, 1 for others."""
    zeros = stored.parts["0.zeros"]
    ones = group.add("Expand", group.constant(1, "F32"), group.constant([rows], "I64"))
    none = group.add("Expand", group.constant(0, "F32"), group.constant([zeros.shape[0]], "I64"))
    places = group.add("Reshape", zeros.name, group.constant([-1], "I64"))
    mask = group.add("ScatterElements", ones, places, none, axis=0)
    return group.last_axis(group.add("Gather", mask, ids, axis=0))


def table_graph(_: Method) -> TableGraph:
    """Return how a graph looks up trellis-coded rows."""
    return TrellisGraph()
