"""Where the bits of a trellis-coded row lie, and what they choose; the coder is in ``linalg/trellis.py``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]

POLYNOMIALS = {3: (0o13, 0o04), 4: (0o23, 0o04), 5: (0o45, 0o10)}
POLYNOMIALS |= {6: (0o103, 0o024), 7: (0o235, 0o126), 8: (0o515, 0o362)}
"""Parity checks (h0, h1) of Ungerboeck's codes for one dimension, by memory (Ungerboeck 1987,
"Trellis-coded modulation with redundant signal sets", part II)."""

PAIR = 0.5
"""Rate of a component that shares its one bit with a neighbour."""


@dataclass(frozen=True)
class TrellisCode:
    """How the coefficients of a row become bits.

    A row is a path of steps with one coded bit each. A step is one component of k ≥ 1 bits, k - 1
    of them uncoded, or two components of half a bit. A row holds ``memory`` + steps coded bits (the
    first ``memory`` are the state it starts from), then the uncoded bits of one component after the
    other, then zeros up to a whole byte; the most significant bit comes first everywhere. Step j
    sees the window of coded bits j … j + ``memory``, the oldest the most significant.

    Attributes:
        memory: of the convolutional code, 3 … 8 bits; it has 2^memory states.
        rates: bits of each component, not increasing: whole numbers 8 … 1, then pairs of 0.5.
    """

    memory: int
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.memory not in POLYNOMIALS:
            raise ValueError(f"memory {self.memory} is not one of {sorted(POLYNOMIALS)}")
        known = {*range(1, 9), PAIR}.issuperset(self.rates) and self.rates.count(PAIR) % 2 == 0
        if not self.rates or not known or list(self.rates) != sorted(self.rates, reverse=True):
            raise ValueError("rates are not whole numbers 8 … 1 that do not increase, then pairs of 0.5")

    @cached_property
    def runs(self) -> tuple[tuple[float, slice], ...]:
        """Each rate that occurs, with the components that have it."""
        ends = np.cumsum([self.rates.count(rate) for rate in dict.fromkeys(self.rates)]).tolist()
        return tuple((self.rates[i], slice(i, j)) for i, j in zip([0, *ends], ends, strict=False))

    @property
    def scalars(self) -> int:
        """Number of components that have a step of their own."""
        return len(self.rates) - self.rates.count(PAIR)

    @property
    def steps(self) -> int:
        """Length of a path."""
        return (self.scalars + len(self.rates)) // 2

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return -(-(self.memory + int(sum(self.rates))) // 8)

    @cached_property
    def windows(self) -> Indices:
        """Where the window of each component begins, in bits: its step."""
        nth = np.arange(len(self.rates))
        return np.where(nth < self.scalars, nth, self.scalars + (nth - self.scalars) // 2)

    @cached_property
    def uncoded_bits(self) -> Indices:
        """Uncoded bits of each component."""
        return np.maximum(0, np.array(self.rates, np.intp) - 1)

    @cached_property
    def uncoded_starts(self) -> Indices:
        """Where the uncoded bits of each component begin, in bits: behind the path."""
        return self.memory + self.steps + np.cumsum(self.uncoded_bits) - self.uncoded_bits

    @cached_property
    def subsets(self) -> NDArray[np.uint8]:
        """Subset 0 … 3 that each window chooses."""
        windows = np.arange(2 << self.memory)
        high, low = (np.bitwise_count(windows & taps) & 1 for taps in POLYNOMIALS[self.memory])
        return np.asarray(2 * high + low, np.uint8)

    @cached_property
    def books(self) -> dict[float, slice]:
        """Where in the flat codebooks that of each rate that occurs lies.

        That of k bits holds 2^(k+1) ascending levels, level i in subset i mod 4 with uncoded bits
        i div 4; that of pairs holds two numbers for each window.
        """
        sizes = [4 << self.memory if rate == PAIR else 2 << int(rate) for rate, _ in self.runs]
        ends = np.cumsum(sizes).tolist()
        return {rate: slice(end - n, end) for (rate, _), end, n in zip(self.runs, ends, sizes, strict=True)}

    @property
    def book_size(self) -> int:
        """Numbers in the flat codebooks."""
        return max(int(book.stop) for book in self.books.values())

    @cached_property
    def levels(self) -> dict[float, Indices]:
        """Index into the flat codebooks of each symbol, by rate.

        A symbol is the uncoded bits above the window; in pairs, 2 · window, or 1 more for the second.
        """
        levels = {}
        for rate, book in self.books.items():
            uncoded = np.arange(1 << max(0, int(rate) - 1))[:, None]
            index = np.arange(4 << self.memory) if rate == PAIR else (4 * uncoded + self.subsets).ravel()
            levels[rate] = book.start + index
        return levels


MEMORY = 8
"""Memory of the code of stored tables, 256 states: 0.1 dB better than 64 at three times the time, which a
table of 200 million numbers still affords. It is part of what is on disk."""


def coded_order(rates: NDArray[np.float64]) -> Indices:
    """The components with bits (``rates`` above 0), by falling rate, then by index: how they are coded."""
    return np.argsort(-rates, kind="stable")[: np.count_nonzero(rates)]


def code_of(rates: NDArray[np.float64]) -> TrellisCode:
    """The code of the components that have bits.

    Raises:
        ValueError: no code has such rates.
    """
    return TrellisCode(MEMORY, tuple(float(rate) for rate in rates[coded_order(rates)]))
