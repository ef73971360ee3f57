"""Trellis-coded rows in an ONNX graph; ``linalg/trelliscode.py`` describes their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.checkpoint.onnx.coding import CODES_OPSET, F32, MOST_BITS, bit_fields, flags, scaled_integers
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.linalg.packing import widest
from embcompress.linalg.trelliscode import code_of, coded_order
from embcompress.methods.base import Method
from embcompress.methods.parts import REMAKE


class TrellisGraph(TableGraph):
    """Trellis-coded rows, of one class or of two, times a right factor in integers."""

    opset = CODES_OPSET

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Gather rows of bytes, decode their components, and multiply by the right factor."""
        count, rank = stored.parts["0.rates"].shape
        rows, width = stored.parts["0.codes"].shape
        rates = stored.content("0.rates")
        # If only sizes matter: many bits for all components, and a pair, take the most nodes and constants.
        doubled = [np.array([14] * rank + [1, 1])] * count if rates is None else [*rates.astype(np.int64)]
        books = group.add("Reshape", stored.part("0.codebooks"), group.constant([-1], "I64"))
        octets = group.add("Cast", group.add("Gather", stored.part("0.codes"), ids, axis=0), to=1)
        found, begin = "", 0
        for each in range(count):
            code = GraphCode(doubled[each])
            hot = ""
            if each:
                bits = flags(group, stored.part("0.hot"), rows)
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
        right = widest(columns, right_width) or MOST_BITS
        return group.add("MatMul", found, scaled_integers(group, "1", None, stored, columns, right)), F32


class GraphCode:
    """Positions and sizes of everything in the code of one class of rows.

    Args:
        doubled: twice the bits of each component (r); 0 for components that are not coded.

    Raises:
        InputError: no code has such bits.
    """

    def __init__(self, doubled: NDArray[Any]) -> None:
        try:
            code, coded = code_of(doubled / 2), coded_order(doubled)
        except ValueError as error:
            raise InputError(f"0.rates: {error}", remedy=REMAKE) from None
        self.scalars = code.scalars
        """Number of components with whole bits; the others are pairs that share one bit."""
        self.places: NDArray[Any] = np.zeros(len(doubled), np.int64)
        """Index of each component in coding order; 0 for components that are not coded."""
        self.places[coded] = np.arange(len(coded))
        self.is_coded = doubled > 0
        self.windows = code.windows
        """First bit of the window of each coded component."""
        self.uncoded_bits = code.uncoded_bits[: code.scalars]
        """Number of uncoded bits of each component with whole bits."""
        self.uncoded = code.uncoded_starts[: code.scalars]
        """First uncoded bit of each of them."""
        self.bases = np.array([code.books[rate].start for rate in code.rates], np.int64)
        """Index in the flat codebooks of the first level of each component."""
        self.bases[code.scalars :] += np.arange(len(coded) - code.scalars) % 2
        self.book_size = code.book_size
        """Numbers in the flat codebooks."""
        self.subsets = code.subsets
        """Subset, 0 … 3, that each window selects."""


def _levels(group: Group, octets: str, width: int, code: GraphCode, books: str, begin: int) -> str:
    """Decoded coefficients of the coded components, in coding order, as float32."""
    parts = []
    if code.scalars:
        windows = bit_fields(group, octets, width, code.windows[: code.scalars], np.full(code.scalars, 9))
        subsets = group.add("Gather", group.constant(code.subsets, "F32"), group.add("Cast", windows, to=6))
        uncoded = bit_fields(group, octets, width, code.uncoded, code.uncoded_bits)
        index = group.add("Mul", uncoded, group.constant(4, "F32"))
        index = group.add("Add", index, subsets)
        parts.append(group.add("Add", index, group.constant(begin + code.bases[: code.scalars], "F32")))
    pairs = len(code.windows) - code.scalars
    if pairs:
        windows = bit_fields(group, octets, width, code.windows[code.scalars :], np.full(pairs, 9))
        index = group.add("Mul", windows, group.constant(2, "F32"))
        parts.append(group.add("Add", index, group.constant(begin + code.bases[code.scalars :], "F32")))
    index = parts[0] if len(parts) == 1 else group.add("Concat", *parts, axis=-1)
    index = group.add("Cast", index, to=6)
    return group.add("Cast", group.add("Gather", books, index, axis=0), to=1)


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
