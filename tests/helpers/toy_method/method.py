"""Stores each row as signs times the mean absolute value (XNOR-Net, Rastegari et al. 2016, eq. 6)."""

from __future__ import annotations

import numpy as np

from embcompress.dtypes import DTYPES
from embcompress.methods.base import Method, TableLayout
from embcompress.methods.parts import Elements, Part, PartSpec, check_shapes


class Signs(Method):
    """Stores signs (V×⌈d/8⌉ bytes) as ``X.0.signs``, the mean absolute value of each row as ``X.0.sizes``."""

    name = "signs"
    parts = (PartSpec("0.signs", Elements.BYTES), PartSpec("0.sizes", Elements.FLOATS, trainable=True))
    by_rows = True

    def stored(self, shape):
        return (
            Part("0.signs", DTYPES["U8"], (shape[0], -(-shape[1] // 8))),
            Part("0.sizes", DTYPES["F16"], (shape[0], 1)),
        )

    def least(self, shape, settings):
        return sum(part.nbytes for part in self.stored(shape))

    def fit(self, stats, limit, settings):
        shape, sample = stats.rows.shape, stats.sample
        if self.least(shape, settings) > limit:
            return None
        sizes = np.abs(sample.rows).mean(axis=1, keepdims=True)
        error = sample.relative_error(np.where(sample.rows >= 0, sizes, -sizes))
        return TableLayout(self.stored(shape), None, DTYPES["F16"], 1, error, tolerance=0.15)

    def encode(self, stats, layout, settings, advance=lambda count: None):
        def signs():
            for block in stats.rows.blocks():
                advance(len(block))
                yield np.packbits(block >= 0, axis=1)

        def sizes():
            for block in stats.rows.blocks():
                yield np.abs(block).mean(axis=1, keepdims=True)

        return {"0.signs": signs, "0.sizes": sizes}

    def decode(self, parts, shape, rank):
        check_shapes(parts, {part.suffix: part.shape for part in self.stored(shape)}, shape, rank)

        def read(start, stop):
            signs = np.unpackbits(parts["0.signs"].read(start, stop), axis=1, count=shape[1])
            return np.float32(2) * (signs - np.float32(0.5)) * parts["0.sizes"].read(start, stop)

        return read

    def flops(self, shape, rank):
        return shape[1]


METHODS = (Signs(),)
