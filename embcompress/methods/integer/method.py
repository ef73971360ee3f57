"""Rows as scaled integers: the simplest way to make a table smaller, and the baseline for the others.

Each row is rounded to integers of b bits times one scale, chosen for the least squared error (see
``linalg/integers.py``). The size is fixed: b bits per number and two bytes per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DTYPES
from embcompress.linalg.integers import dequantize, quantize, unpacked_rows
from embcompress.linalg.packing import pack, packed_width
from embcompress.methods.base import Blocks, Method, Read, Settings, TableLayout
from embcompress.methods.parts import Elements, Part, Parts, PartSpec, check_shapes
from embcompress.methods.stats import Advance, TableStats, ignore_progress


class Integers(Method):
    """Stores packed integers (V×⌈d·b/8⌉ bytes) as ``X.0.codes``, one scale per row (V×1) as ``X.0.scales``.

    Args:
        bits: bits of an integer, b, 1 to 8.
    """

    parts = (PartSpec("0.codes", Elements.BYTES), PartSpec("0.scales", Elements.FLOATS))
    by_rows = True
    weighs = False

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.name = f"int{bits}"

    def stored(self, shape: tuple[int, int]) -> tuple[Part, ...]:
        """The parts of a (V, d) table."""
        codes, scales = self.suffixes
        width = packed_width(shape[1], self.bits)
        return Part(codes, DTYPES["U8"], (shape[0], width)), Part(scales, DTYPES["F16"], (shape[0], 1))

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Bytes of integers and scales; there is no other size."""
        return sum(part.nbytes for part in self.stored(shape))

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Return the only possible layout; its error is measured on a sample of rows."""
        shape, sample = stats.rows.shape, stats.sample
        if self.least(shape, settings) > limit or not np.isfinite(sample.rows).all():
            return None
        found = quantize(sample.rows, self.bits)
        return TableLayout(
            parts=self.stored(shape),
            rank=None,
            dtype=DTYPES["F16"],
            bits=self.bits,
            predicted_error=sample.relative_error(dequantize(found.codes, found.scales, self.bits)),
            tolerance=0.15,
        )

    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """Encode integers and scales; the table is read and rounded once for each of them."""

        def codes() -> Iterator[NDArray[Any]]:
            for block in stats.rows.blocks():
                yield pack(quantize(block, self.bits).codes, self.bits)

        def scales() -> Iterator[NDArray[Any]]:
            for block in stats.rows.blocks():
                yield quantize(block, self.bits).scales[:, None]

        return dict(zip(self.suffixes, (codes, scales), strict=True))

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        codes, scales = (parts[suffix] for suffix in self.suffixes)
        check_shapes(parts, {part.suffix: part.shape for part in self.stored(shape)}, shape, rank)

        def read(start: int, stop: int) -> NDArray[np.float32]:
            return unpacked_rows(codes.read(start, stop), scales.read(start, stop), shape[1], self.bits)

        return read

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """2·d: an addition and a multiplication turn each integer into a number."""
        return 2 * shape[1]


METHODS = (Integers(8), Integers(4), Integers(3))
