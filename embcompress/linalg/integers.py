"""Rows as small integers with one scale each: uniform scalar quantization with optimal clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embcompress.linalg.packing import unpack

_COARSE = 10
"""Clipping levels to try for each row, from its peak down."""

_FINE = 16
"""Clipping levels to try next, around the best of those."""

_REFITS = 2
"""Least-squares refits of the scale at the end."""

_CHUNK = 1 << 16
"""Values processed at a time, so that they and their temporaries stay in the processor's cache."""

_UNPACKED = 1 << 20
"""Values unpacked at a time, so that temporaries take little memory beside the rows."""


@dataclass(frozen=True)
class Quantized:
    """Integers and scales of quantized rows.

    Attributes:
        codes: the integers (N×n), 0 … 2^bits - 1, one per byte.
        scales: distance between neighbouring levels in each row (N), finite and not negative.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.floating[Any]]


def quantize(rows: NDArray[Any], bits: int, scale_type: DTypeLike = np.float16) -> Quantized:
    """Quantize each row with a scale that gives nearly the least squared error.

    An integer q means scale · (q - (2^bits - 1)/2). This is the mid-rise uniform quantizer, whose 2^bits
    levels are symmetric about zero. With few bits the best scale clips the peaks of a row (for a Gaussian see
    Max 1960, "Quantizing for minimum distortion", table II). So a range of scales is tried, starting with the
    one that puts the top level on the peak, then more of them around the best one. The best is refitted to
    its integers by least squares. Over many rows the squared error is within 1 % of the least that any scales
    give. Each scale is tried as ``scale_type`` stores it, so the error is never above that of scaling to the
    peak, except for float32 rounding.

    Scales beyond the range of ``scale_type`` are clipped to its smallest and largest positive numbers (about
    6e-8 and 65504 for float16), without an error. So very small rows get coarser levels, or scale 0 if zeros
    are closer to the row than any other levels: rows of zeros and, with float16, rows of values below 1.5e-8.
    Values beyond the top level of the largest scale, 65504 · (2^bits - 1)/2 for float16, are clipped there.

    The arithmetic is float32 on rows scaled by a power of two to a peak of about 1. So rows that differ by
    such a factor get the same integers, as long as their scales are normal numbers.

    Args:
        rows: N×n, float32 or float64, finite.
        bits: bits of an integer, 1 … 8.
        scale_type: float type of the scales.

    Returns:
        The integers and scales. Where the scale is 0, the integers are 2^(bits - 1), which decodes to +0.
    """
    assert 1 <= bits <= 8
    count, columns = rows.shape
    found = Quantized(np.empty((count, columns), np.uint8), np.empty(count, scale_type))
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, count, step):
        part = slice(start, start + step)
        chunk = _Chunk(rows[part], bits, found.scales.dtype)
        found.scales[part] = chunk.search()
        found.codes[part] = chunk.codes()
    return found


def dequantize(codes: NDArray[np.uint8], scales: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """Decode integers q to scale · (q - (2^bits - 1)/2).

    Args:
        codes: the integers (N×n), 0 … 2^bits - 1.
        scales: scale of each row (N).
        bits: bits of an integer, 1 … 8.

    Returns:
        The rows (N×n).
    """
    rows = codes.astype(np.float32)
    rows -= np.float32((2**bits - 1) / 2)
    rows *= scales.astype(np.float32)[:, None]
    return rows


def unpacked_rows(
    codes: NDArray[np.uint8], scales: NDArray[Any], count: int, bits: int
) -> NDArray[np.float32]:
    """Unpack integers and decode them as ``dequantize`` does.

    Args:
        codes: packed integers (N×``packed_width(count, bits)`` bytes), see ``linalg/packing.py``.
        scales: scale of each row (N×1).
        count: integers in a row.
        bits: bits of an integer, 1 … 8.

    Returns:
        The rows (N×``count``).
    """
    rows = np.empty((len(codes), count), np.float32)
    step = max(1, _UNPACKED // max(1, count))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        rows[part] = dequantize(unpack(codes[part], count, bits), scales[part, 0], bits)
    return rows


class _Chunk:
    """Some rows, scaled to a peak of about 1, with the best scale of each found so far."""

    def __init__(self, rows: NDArray[Any], bits: int, scale_type: np.dtype[Any]) -> None:
        self._bits = bits
        self._limits = np.finfo(scale_type)
        self._type = scale_type
        exponents = np.frexp(np.abs(rows).max(axis=1, initial=0))[1]
        # Powers of two at the ends of the range have no reciprocal in it. Rows of that size keep a peak
        # that is not quite 1, but still far from where squares overflow or underflow.
        info = np.finfo(rows.dtype)
        self._exponents = np.clip(exponents, info.minexp, info.maxexp - 2)
        self._rows: NDArray[np.float32] = np.empty(rows.shape, np.float32)
        factors = np.ldexp(rows.dtype.type(1), -self._exponents)
        np.multiply(rows, factors[:, None], out=self._rows, casting="same_kind")
        self._levels: NDArray[np.float32] = np.empty_like(self._rows)
        self._squares: NDArray[np.float32] = np.vecdot(self._rows, self._rows)
        # Scale 0 decodes to zeros, so the error is the whole row.
        self._scales = np.zeros(len(rows), scale_type)
        self._errors = self._squares

    def search(self) -> NDArray[Any]:
        """Find the best scale of each row (N)."""
        if not self._rows.size:
            return self._scales
        # The rms shows how heavy the tails are: the heavier, the further below the peak is the best clipping
        # level. For a Gaussian it is always above rms · bits/4.
        peaks = np.abs(self._rows).max(axis=1)
        rms = np.sqrt(self._squares / self._rows.shape[1])
        lowest = np.minimum(rms * (self._bits / 4) / np.where(peaks > 0, peaks, 1), 0.8)
        lowest[peaks == 0] = 1  # any value will do
        top = (2**self._bits - 1) / 2
        for share in np.linspace(0, 1, _COARSE):
            self._try(peaks * lowest**share / top)
        # The error is not smooth in the scale, least of all with many bits, when a step of a few thousandths
        # moves the outer values to other levels. So scales on both sides of the best are tried.
        coarse = self._shrunk(self._scales)
        for share in np.linspace(-1, 1, _FINE) / (_COARSE - 1):
            self._try(coarse * lowest**share)
        for _ in range(_REFITS):
            levels = self._nearest(self._shrunk(self._scales))
            fits = np.vecdot(self._rows, levels) / np.vecdot(levels, levels)  # no level is 0
            self._try(fits)
        return self._scales

    def codes(self) -> NDArray[np.uint8]:
        """The integers for the best scale of each row (N×n)."""
        levels = self._nearest(self._shrunk(self._scales))
        levels += (2**self._bits - 1) / 2
        return levels.astype(np.uint8)

    def _try(self, wanted: NDArray[Any]) -> None:
        """Keep these scales (N, for the scaled rows) in the rows where they reduce the error."""
        with np.errstate(over="ignore", under="ignore"):
            scales = np.ldexp(wanted.astype(np.float64), self._exponents)
            scales = scales.clip(self._limits.smallest_subnormal, self._limits.max).astype(self._type)
        shrunk = self._shrunk(scales)
        errors = self._nearest(shrunk)
        with np.errstate(over="ignore", under="ignore"):
            errors *= shrunk[:, None]
            errors -= self._rows
            sums = np.vecdot(errors, errors)
        # A scale far too small for its row also has the whole row as error, except for rounding. It is still
        # preferred to scale 0, which is for rows of zeros and for rows that no scale improves.
        better = (sums <= self._errors) & (self._squares > 0)
        self._scales = np.where(better, scales, self._scales)
        self._errors = np.where(better, sums, self._errors)

    def _shrunk(self, scales: NDArray[Any]) -> NDArray[np.float32]:
        """Convert scales (N) to those of the scaled rows; infinite if they are far too large.

        Scales that are far too small become 1e-30: negligible next to the row's peak, but with a finite
        reciprocal.
        """
        with np.errstate(over="ignore", under="ignore"):
            shrunk = np.ldexp(scales.astype(np.float64), -self._exponents)
            return np.where(scales > 0, np.maximum(shrunk, 1e-30), 0.0).astype(np.float32)

    def _nearest(self, shrunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """Nearest levels (N×n) in units of the scale, ±½, ±1½, …; the next call overwrites the result."""
        levels, half = self._levels, 2 ** (self._bits - 1)
        inverse = np.divide(1, shrunk, out=np.zeros_like(shrunk), where=shrunk > 0)
        with np.errstate(under="ignore"):  # with scale 0 all levels are +½
            np.multiply(self._rows, inverse[:, None], out=levels)
        np.floor(levels, out=levels)
        np.clip(levels, -half, half - 1, out=levels)
        levels += np.float32(0.5)
        return levels
