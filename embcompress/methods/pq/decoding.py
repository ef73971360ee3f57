"""Reads the stored parts of a trellis-coded table; ``methods/pq/method.py`` describes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.errors import InputError
from embcompress.linalg.classes import RowClasses, class_planes
from embcompress.linalg.integers import unpacked_rows
from embcompress.linalg.packing import packed_width, widest
from embcompress.linalg.trelliscode import book_starts, code_of
from embcompress.methods.parts import REMAKE, Parts, check_rank, check_shapes
from embcompress.methods.pq.planning import RIGHT_BITS, extra_shape
from embcompress.methods.pq.row_code import RowCode
from embcompress.methods.stats import CLASSES
from embcompress.rows import Rows


class TrellisTable:
    """A trellis-coded table, decoded row by row. All parts but the codes are read and checked at once.

    Raises:
        InputError: the parts do not belong to a table of this shape and rank.
    """

    def __init__(self, parts: Parts, shape: tuple[int, int], rank: int) -> None:
        check_rank(parts, shape, rank)
        rows, columns = shape
        self._codes, self._extra = parts["0.codes"], parts.get("0.extra")
        if ("0.hot" in parts) != ("0.extra" in parts):
            raise _corrupt("one of 0.hot and 0.extra is missing")
        count = parts["0.rates"].shape[0] if "0.hot" in parts else 1
        if count > CLASSES:
            raise _corrupt(f"0.rates: {count:,} classes of rows; the most are {CLASSES}")
        bits = widest(columns, parts["1.codes"].shape[1])
        bits = bits if bits in RIGHT_BITS else 0
        expected = {
            "0.rates": (count, rank),
            "0.scales": (count, rank),
            "1.codes": (rank, packed_width(columns, bits or 8)),
            "1.scales": (rank, 1),
        }
        check_shapes(parts, {"0.codes": (rows, self._codes.shape[1])}, shape, rank)  # so that they fit memory
        packed = np.empty(0, np.uint8)
        if count > 1:
            expected["0.hot"] = (class_planes(count) * -(-rows // 8), 1)
            check_shapes(parts, expected, shape, rank)
            packed = _whole(parts["0.hot"])[:, 0]
        check_shapes(parts, expected, shape, rank)
        rates = _whole(parts["0.rates"]) / 2
        try:
            self._kinds = RowClasses(packed, rows, count)
            codes = [code_of(each) for each in rates]
            self._more = np.array([code.row_bytes - codes[0].row_bytes for code in codes])
            if self._extra is not None:
                expected["0.extra"] = extra_shape(self._more, self._kinds.totals)
        except ValueError as error:
            raise _corrupt(str(error)) from None
        numbers = parts["0.codebooks"].shape[1]
        try:
            starts = book_starts(codes, numbers)
        except ValueError:
            numbers = -1  # refused below, with the shape of the table
        expected |= {"0.codes": (rows, codes[0].row_bytes), "0.codebooks": (1, numbers)}
        self._starts = np.cumsum([0, *(self._more * self._kinds.totals)])
        if "0.zeros" in parts:
            expected["0.zeros"] = (parts["0.zeros"].shape[0], 1)
        check_shapes(parts, expected, shape, rank)
        with _quiet():
            flat, scales = _whole(parts["0.codebooks"])[0], _whole(parts["0.scales"])
        self._classes = [
            RowCode(rates[kind], scales[kind], code.books_in(flat, starts[kind]))
            for kind, code in enumerate(codes)
        ]
        self._zeros = np.empty(0, np.int32)
        if "0.zeros" in parts:
            self._zeros = np.sort(_whole(parts["0.zeros"])[:, 0])
            if self._zeros.size and (self._zeros[0] < 0 or self._zeros[-1] >= rows):
                raise _corrupt(f"0.zeros: rows beyond {rows - 1:,}")
        with _quiet():
            self._right = unpacked_rows(_whole(parts["1.codes"]), _whole(parts["1.scales"]), columns, bits)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Decode rows ``start:stop`` of the table."""
        codes, kinds = self._codes.read(start, stop), self._kinds.span(start, stop)
        coefficients = np.empty((stop - start, len(self._right)), np.float32)
        before = self._starts[:-1] + self._more * self._kinds.before(start)
        with _quiet():
            for kind, code in enumerate(self._classes):
                members = np.flatnonzero(kinds == kind)
                mine = codes[members]
                if self._extra is not None and self._more[kind] and len(members):
                    first = before[kind] // self._extra.shape[1]
                    more = len(members) * self._more[kind]
                    extra = self._extra.read(first, first + more // self._extra.shape[1])
                    mine = np.concatenate([mine, extra.reshape(len(members), -1)], axis=1)
                coefficients[members] = code.decode(mine)
            rows = coefficients @ self._right
        first, last = np.searchsorted(self._zeros, (start, stop))
        rows[self._zeros[first:last] - start] = 0
        return rows


def _quiet() -> np.errstate:
    """Scales in untrusted files may be of any size; the result is checked when it is measured."""
    return np.errstate(over="ignore", invalid="ignore")


def _whole(part: Rows) -> NDArray[Any]:
    return part.read(0, part.shape[0])


def _corrupt(what: str) -> InputError:
    return InputError(what, remedy=REMAKE)
