"""Rows stored unchanged: what ``screen`` wraps if no other method is named. Not in the registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.errors import TargetError
from embcompress.methods.base import Blocks, Method, Read, Settings, TableLayout
from embcompress.methods.parts import Elements, Part, Parts, PartSpec, check_shapes
from embcompress.methods.stats import Advance, TableStats, ignore_progress

_ROUNDING = 0.392
"""Relative error of rounding a table, in unit roundoffs u: 1/sqrt(3·E[m²]) if significands m are
log-uniform over [1, 2)."""


class Dense(Method):
    """Stores the rows unchanged, as ``X.0.weight`` (V×d), apart from rounding to the element type."""

    name = ""
    parts = (PartSpec("0.weight", Elements.FLOATS, trainable=True),)
    by_rows = True
    exact = True

    def stored(self, shape: tuple[int, int], settings: Settings) -> tuple[Part, ...]:
        """The parts of a (V, d) table: its rows."""
        return (Part(self.suffixes[0], settings.dtype, shape),)

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Bytes of the table in the chosen element type; there is no other size."""
        return sum(part.nbytes for part in self.stored(shape, settings))

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Return the only possible layout; its error is the rounding to a narrower type."""
        if self.least(stats.rows.shape, settings) > limit:
            return None
        narrower = settings.dtype.significand < stats.rows.dtype.significand
        return TableLayout(
            parts=self.stored(stats.rows.shape, settings),
            rank=None,
            dtype=settings.dtype,
            bits=settings.dtype.bits,
            predicted_error=_ROUNDING * settings.dtype.unit_roundoff if narrower else 0.0,
            tolerance=0.02,
        )

    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        def blocks() -> Iterator[NDArray[Any]]:
            for block in stats.rows.blocks():
                peak = float(np.abs(block).max(initial=0.0))
                if peak > layout.dtype.largest:
                    raise TargetError(
                        f"a row reaches {peak:.3g}, {layout.dtype.torch} ends at {layout.dtype.largest:.5g}",
                        remedy="store the rows with --dtype bfloat16 or float32",
                    )
                yield block

        return {self.suffixes[0]: blocks}

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        check_shapes(parts, {self.suffixes[0]: shape}, shape, rank)
        part = parts[self.suffixes[0]]
        return lambda start, stop: part.read(start, stop).copy()

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        return 0  # a gather
