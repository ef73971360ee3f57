"""The code of one class of rows of a trellis-coded table: rates, scales and codebooks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from embcompress.linalg import trellis
from embcompress.linalg.trelliscode import TrellisCode, code_of, coded_order

_ROUNDS = 2
"""Rounds of training; the initial codebooks are within 0.1 dB of the best, and a third gains 0.005 dB."""

_TRAINED_ON = 512
"""Most rows of a class that codebooks are trained on; levels have hundreds of members among them."""

_STRETCHED = 6
"""Bits from which on the outermost levels are moved outwards: that costs little, and rows outside the sample
would otherwise be clipped at the levels of rows in the sample."""

_OUTER = np.array([1.15, 1.4, 1.75, 2.2], np.float32)
"""Ratio of each of the four outermost levels, one of each subset, to the level next to them."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RowCode:
    """Encodes the coefficients of rows to bytes, and decodes them.

    Attributes:
        rates: bits of each component (r); 0 for components that are not coded.
        scales: factors of the decoded coefficients (r).
        codebooks: flat codebooks of the trellis code of the coded components; values fit float16.
    """

    rates: NDArray[np.float64]
    scales: Floats
    codebooks: Floats

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Indices of the coded components in coding order: by falling rate, then by index."""
        return coded_order(self.rates)

    @cached_property
    def code(self) -> TrellisCode:
        """The trellis code of the coded components."""
        return code_of(self.rates)

    def encode(self, coefficients: Floats) -> NDArray[np.uint8]:
        """Encode coefficients (N×r) to codes (N×``row_bytes``), on all processors."""
        scaled = coefficients[:, self.order] / self.scales[self.order]
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shares = np.array_split(scaled, workers)
        with ThreadPoolExecutor(workers) as pool:
            return np.concatenate(
                [*pool.map(lambda share: trellis.encode(share, self.code, self.codebooks), shares)]
            )

    def decode(self, codes: NDArray[np.uint8]) -> Floats:
        """Decode codes to coefficients (N×r)."""
        found = np.zeros((len(codes), len(self.rates)), np.float32)
        found[:, self.order] = trellis.decode(codes, self.code, self.codebooks)
        found *= self.scales
        return found


@dataclass(frozen=True)
class Class:
    """The rows of one class in a sample.

    Attributes:
        rates: bits of each component (r).
        coefficients: coefficients of the rows (n×r).
        weights: weights of the rows (n), not all 0.
    """

    rates: NDArray[np.float64]
    coefficients: Floats
    weights: NDArray[np.float64]


def trained(classes: Sequence[Class]) -> Iterator[tuple[RowCode, Floats]]:
    """Train scales and shared codebooks on sample rows; yields each class's code and its decoded rows.

    Scales first bring each component to unit variance. After the codebooks are trained, each scale is
    refitted to the coefficients by least squares.
    """
    books: dict[float, Floats] = {}
    groups, all_scales = [], []
    for each in classes:
        variances = each.weights @ np.square(each.coefficients, dtype=np.float64) / each.weights.sum()
        scales = np.where(variances > 0, np.sqrt(variances), 1.0).astype(np.float32)
        all_scales.append(scales)
        code, order = code_of(each.rates), coded_order(each.rates)
        # Every k-th row, since the sample is in the order of the table.
        some = slice(None, None, -(-len(each.coefficients) // _TRAINED_ON))
        groups.append(
            trellis.Rows(
                each.coefficients[some][:, order] / scales[order],
                code,
                each.weights[some] / each.weights[some].sum(),
            )
        )
        usual = trellis.initial_codebooks(code)
        books |= {rate: usual[book] for rate, book in code.books.items()}
    books = trellis.train(groups, books, _ROUNDS)
    for rate, levels in books.items():
        if rate >= _STRETCHED:
            levels[-4:], levels[:4] = levels[-5] * _OUTER, levels[4] * _OUTER[::-1]
    for each, scales in zip(classes, all_scales, strict=True):
        flat = np.concatenate([books[rate] for rate in code_of(each.rates).books])
        first = RowCode(each.rates, scales, flat.astype(np.float16).astype(np.float32))
        decoded = first.decode(first.encode(each.coefficients))
        products = each.weights @ np.multiply(each.coefficients, decoded, dtype=np.float64)
        squares = each.weights @ np.square(decoded, dtype=np.float64)
        gains = np.divide(products, squares, out=np.ones(len(each.rates)), where=squares > 0).astype(
            np.float32
        )
        yield RowCode(each.rates, scales * gains, first.codebooks), decoded * gains


def joined(classes: Sequence[RowCode]) -> Floats:
    """The codebooks of all classes, each once (see ``linalg.trelliscode.book_starts``)."""
    books: dict[float, Floats] = {}
    for each in classes:
        for rate, book in each.code.books.items():
            books.setdefault(rate, each.codebooks[book])
    return np.concatenate([*books.values()])
