"""Low rank and low precision at once: both factors of a truncated table are rounded to a few bits.

LPLR, Saha, Srivastava & Pilanci 2023, "Matrix Compression via Randomized Low Rank and Low Precision
Factorization" (arXiv:2310.11028, algorithm 1): sketch the table E with a random matrix, round E S to
b₁ bits per number, fit the right factor to the *rounded* left one by least squares, and round it to b₂ bits.

This implementation differs in three ways:

- **The sketch.** A basis of C^q Ω, for the Gram matrix C, a Gaussian Ω and q power iterations, would cost no
  further pass over the table. But since C is known exactly, q may as well be infinite: S = V_r Q, the top
  eigenvectors of C times a uniformly random rotation Q. So truncation loses as little as possible, and the
  rotation spreads the energy, which E V_r has in its first columns, over all columns, which suits one scale
  per row. On all-MiniLM-L6-v2 at rank 192 and 3 bits the signal-to-error ratio is 4.2, 5.5 and 5.9 dB for
  q = 0, 1 and 2, and 6.3 dB here. At rank 384 the QR of C^q Ω for q = 1 mixes the columns so little that it
  gets 13.4 dB, a rotation 14.6 dB, and E V_r without one 12.5 dB.
- **The weights.** Rows have weights w_i, both in C and in the fit R = (LᵀWL + μI)⁻¹ LᵀWE, which is computed
  from sums over row blocks in float64. Rounding R adds about ν·tr(LᵀWL)/r to the error for each unit of
  ‖R‖², where ν is the relative squared error of b₂-bit rounding. With μ equal to that price, R is the best
  right factor *after rounding*.
- **The sizes.** Of all r, b₁ and b₂ that fit, those with the least predicted error are used.

Each row of either factor has its own scale (``linalg/integers.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DTYPES
from embcompress.errors import InputError, TargetError
from embcompress.linalg.integers import dequantize, quantize, unpacked_rows
from embcompress.linalg.packing import pack, packed_width
from embcompress.methods.base import Blocks, Fit, Method, Read, Settings, TableLayout
from embcompress.methods.lplr.planning import (
    LEFT_BITS,
    RIGHT_BITS,
    SEED,
    FactorPlan,
    Planner,
    fitted,
    nbytes,
    sketch,
)
from embcompress.methods.parts import Elements, Part, Parts, PartSpec, check_rank, check_shapes
from embcompress.methods.stats import Advance, TableStats, ignore_progress

_ROUNDED = {4: 0.0109, 6: 0.0008, 8: 0.00005}
"""Fraction of the squares that rounding loses in Gaussian rows of some hundred numbers, one scale per row."""

_REFITTED = (0.306, 0.107, 0.0347, 0.0107, 0.00303, 0.0008, 0.0002, 0.00005)
"""The same for ``LEFT_BITS`` after the refit, which gains 0.7, 0.4, 0.2 and 0.1 dB at 1 to 4 bits."""


class LPLR(Method):
    """Stores packed integers and scales of both factors, and the bits of each.

    ``X.0.codes`` (V×⌈r·b₁/8⌉ bytes) and ``X.0.scales`` (V×1, float16) are the left factor, ``X.1.codes``
    (r×⌈d·b₂/8⌉ bytes) and ``X.1.scales`` (r×1, float32) the right one; ``X.0.bits`` (1×2) holds b₁ and b₂.
    """

    name = "lplr"
    has_rank = True
    parts = (
        PartSpec("0.codes", Elements.BYTES),
        PartSpec("0.scales", Elements.FLOATS),
        PartSpec("1.codes", Elements.BYTES, trainable=True),
        PartSpec("1.scales", Elements.SCALES, trainable=True),
        PartSpec("0.bits", Elements.BYTES),
    )
    seed = SEED

    def stored(self, shape: tuple[int, int], rank: int, bits: tuple[int, int]) -> tuple[Part, ...]:
        """The parts of a (V, d) table with factors of so many bits, left and right."""
        (count, columns), (left, right) = shape, bits
        sizes = (
            (count, packed_width(rank, left)),
            (count, 1),
            (rank, packed_width(columns, right)),
            (rank, 1),
            (1, 2),
        )
        types = (DTYPES[name] for name in ("U8", "F16", "U8", "F32", "U8"))
        return tuple(Part(*part) for part in zip(self.suffixes, types, sizes, strict=True))

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Bytes at rank 1 with the fewest bits."""
        return sum(part.nbytes for part in self.stored(shape, 1, (min(LEFT_BITS), min(RIGHT_BITS))))

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Plan the rank and bits with the least predicted error within the limit."""
        return self.fitter(stats, settings)(limit)

    def fitter(self, stats: TableStats, settings: Settings) -> Fit:
        """Return :meth:`fit` for many limits; ranks and bits that were tried are not tried again."""
        planner = Planner(stats)

        def fit(limit: int) -> TableLayout | None:
            plan = planner.best(limit) if stats.fits_float32 else None
            if plan is None:
                return None
            return TableLayout(
                parts=self.stored(stats.rows.shape, plan.rank, plan.bits),
                rank=plan.rank,
                dtype=DTYPES["F16"],
                bits=plan.bits[0],
                predicted_error=plan.error,
                tolerance=0.15,
                state=plan,
            )

        return fit

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Estimate the error of the best rank and bits from the spectrum and the rounding of Gaussians."""
        ranks = np.arange(1, stats.spectrum.limit + 1)
        fits = nbytes(stats.rows.shape, ranks) <= limit
        if not stats.fits_float32:
            return None
        if not fits.any() or not stats.spectrum.total:
            return 0.0 if fits.any() else None
        cut = np.square(stats.spectrum.relative_errors()[1:])[:, None, None]
        refitted, right = np.array(_REFITTED), np.array([_ROUNDED[bits] for bits in RIGHT_BITS])
        rounded = refitted[:, None] + right
        return float(np.sqrt((cut + (1 - cut) * rounded)[fits].min()))

    def quick_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Estimate the error from trials with an eighth of the rows."""
        rough = Planner(stats, rough=True).best(limit) if stats.fits_float32 else None
        return None if rough is None else rough.error

    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """Encode both factors in one pass, when the first part is needed; both are kept in memory, packed."""
        made = functools.cache(functools.partial(_encoded, stats, layout.state, advance))
        step = stats.rows.block_rows

        def blocks(place: int) -> Iterator[NDArray[Any]]:
            whole = made()[place]
            for start in range(0, len(whole), step):
                yield whole[start : start + step]

        return {suffix: functools.partial(blocks, place) for place, suffix in enumerate(self.suffixes)}

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """Return a reader of left rows times the right factor; the numbers of bits are read at once."""
        codes, scales, right_codes, right_scales, widths = (parts[suffix] for suffix in self.suffixes)
        check_rank(parts, shape, rank)
        check_shapes(parts, {self.suffixes[-1]: (1, 2)}, shape, rank)
        left, right = (int(bits) for bits in widths.read(0, 1)[0])
        if left not in LEFT_BITS or right not in RIGHT_BITS:
            raise InputError(
                f"factors of {left} and {right} bits: this version reads "
                f"{', '.join(map(str, LEFT_BITS))} and {', '.join(map(str, RIGHT_BITS))}",
                remedy="make the file again from its source, or install a newer embcompress",
            )
        size = rank or 0
        expected = {part.suffix: part.shape for part in self.stored(shape, size, (left, right))}
        check_shapes(parts, expected, shape, rank)

        @functools.cache
        def factor() -> NDArray[np.float32]:
            return unpacked_rows(right_codes.read(0, size), right_scales.read(0, size), shape[1], right)

        def read(start: int, stop: int) -> NDArray[np.float32]:
            rows = unpacked_rows(codes.read(start, stop), scales.read(start, stop), size, left)
            product: NDArray[np.float32] = rows @ factor()
            return product

        return read

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """2·r to decode a left row and 2·r·d to multiply it by the right factor."""
        assert rank is not None
        return 2 * rank + 2 * rank * shape[1]


def _encoded(stats: TableStats, plan: FactorPlan, advance: Advance) -> tuple[NDArray[Any], ...]:
    """Encode both factors; returns the contents of the parts, in stored order."""
    table, rank, bits = stats.rows, plan.rank, plan.bits
    basis = sketch(stats, rank)[0].astype(np.float64 if table.dtype.name == "F64" else np.float32)
    codes = np.empty((table.shape[0], packed_width(rank, bits[0])), np.uint8)
    scales = np.empty((table.shape[0], 1), np.float16)
    squares, products = np.zeros((rank, rank)), np.zeros((rank, table.shape[1]))
    for start, stop in table.spans():
        block = table.read(start, stop)
        found = quantize(block.astype(basis.dtype, copy=False) @ basis, bits[0])
        codes[start:stop], scales[start:stop, 0] = pack(found.codes, bits[0]), found.scales
        left = dequantize(found.codes, found.scales, bits[0]).astype(np.float64)
        weighted = (left * stats.weights_of(start, stop)[:, None]).T
        squares += weighted @ left
        products += weighted @ block
        advance(stop - start)
    right = fitted(squares, products, bits[1])
    if np.abs(right).max() > DTYPES["F32"].largest:
        raise TargetError(
            f"{stats.name}: the right factor reaches {np.abs(right).max():.3g}, "
            f"its scales end at {DTYPES['F32'].largest:.3g}",
            remedy="scale the table down, or leave it dense",
        )
    found = quantize(right, bits[1], np.float32)
    return codes, scales, pack(found.codes, bits[1]), found.scales[:, None], np.array([bits], np.uint8)


METHODS = (LPLR(),)
