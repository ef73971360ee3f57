"""The format of trellis-coded rows: positions and meaning of bits. The coder is in ``linalg/trellis.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]

POLYNOMIALS = {3: (0o13, 0o04), 4: (0o23, 0o04), 5: (0o45, 0o10)}
POLYNOMIALS |= {6: (0o103, 0o024), 7: (0o235, 0o126), 8: (0o515, 0o362)}
"""Parity checks (h0, h1) of Ungerboeck's one-dimensional codes, by memory (Ungerboeck 1987, "Trellis-coded
modulation with redundant signal sets", part II)."""

PAIR = 0.5
"""Rate of a component that shares its one bit with a neighbour."""


@dataclass(frozen=True)
class TrellisCode:
    """The layout of the bits of a row.

    A row is a path of steps with one coded bit each. A step is one component of k ≥ 1 bits, k - 1 of which
    are uncoded, or two components of half a bit. A row holds ``memory`` + steps coded bits (the first
    ``memory`` are the initial state), then the uncoded bits of one component after the other, then zeros up
    to a whole byte. The most significant bit is always first. The window of step j is coded bits j … j +
    ``memory``, the oldest being the most significant.

    Attributes:
        memory: bits of memory of the convolutional code, 3 … 8; it has 2^memory states.
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
        """Each rate that occurs, with the slice of its components."""
        ends = np.cumsum([self.rates.count(rate) for rate in dict.fromkeys(self.rates)]).tolist()
        return tuple((self.rates[i], slice(i, j)) for i, j in zip([0, *ends], ends, strict=False))

    @property
    def scalars(self) -> int:
        """Number of components of whole bits, which have one step each."""
        return len(self.rates) - self.rates.count(PAIR)

    @property
    def steps(self) -> int:
        """Number of steps in a path."""
        return (self.scalars + len(self.rates)) // 2

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return -(-(self.memory + int(sum(self.rates))) // 8)

    @cached_property
    def windows(self) -> Indices:
        """First bit of the window of each component, which is the index of its step."""
        nth = np.arange(len(self.rates))
        return np.where(nth < self.scalars, nth, self.scalars + (nth - self.scalars) // 2)

    @cached_property
    def uncoded_bits(self) -> Indices:
        """Number of uncoded bits of each component."""
        return np.maximum(0, np.array(self.rates, np.intp) - 1)

    @cached_property
    def uncoded_starts(self) -> Indices:
        """First uncoded bit of each component; they come after the path."""
        return self.memory + self.steps + np.cumsum(self.uncoded_bits) - self.uncoded_bits

    @cached_property
    def subsets(self) -> NDArray[np.uint8]:
        """Subset, 0 … 3, that each window selects."""
        windows = np.arange(2 << self.memory)
        high, low = (np.bitwise_count(windows & taps) & 1 for taps in POLYNOMIALS[self.memory])
        return np.asarray(2 * high + low, np.uint8)

    @cached_property
    def books(self) -> dict[float, slice]:
        """Slice of the flat codebooks for each rate that occurs.

        The codebook for k bits holds 2^(k+1) ascending levels; level i is in subset i mod 4, with uncoded
        bits i div 4. The codebook for pairs holds two numbers for each window.
        """
        sizes = [4 << self.memory if rate == PAIR else 2 << int(rate) for rate, _ in self.runs]
        ends = np.cumsum(sizes).tolist()
        return {rate: slice(end - n, end) for (rate, _), end, n in zip(self.runs, ends, sizes, strict=True)}

    def books_in(self, numbers: NDArray[Any], starts: Mapping[float, int]) -> NDArray[Any]:
        """The flat codebooks of this code, from a larger array in which they begin at ``starts``, by rate."""
        found = [numbers[starts[r] : starts[r] + book.stop - book.start] for r, book in self.books.items()]
        return np.concatenate(found)

    @cached_property
    def levels(self) -> dict[float, Indices]:
        """Index in the flat codebooks of each symbol, by rate.

        A symbol has the uncoded bits above the window. In pairs it is 2 · window, plus 1 for the second.
        """
        levels = {}
        for rate, book in self.books.items():
            uncoded = np.arange(1 << max(0, int(rate) - 1))[:, None]
            index = np.arange(4 << self.memory) if rate == PAIR else (4 * uncoded + self.subsets).ravel()
            levels[rate] = book.start + index
        return levels


MEMORY = 8
"""Memory of the code of stored tables: 256 states. They are 0.1 dB better than 64 and take three times as
long, which is still acceptable for a table of 200 million numbers. Part of the format on disk."""


def coded_order(rates: NDArray[np.float64]) -> Indices:
    """Indices of the components with ``rates`` above 0 in coding order: by falling rate, then by index."""
    return np.argsort(-rates, kind="stable")[: np.count_nonzero(rates)]


def code_of(rates: NDArray[np.float64]) -> TrellisCode:
    """Return the code of the components with ``rates`` above 0.

    Raises:
        ValueError: no code has such rates.
    """
    return _code(tuple(rates[coded_order(rates)].tolist()))


@lru_cache(256)
def _code(rates: tuple[float, ...]) -> TrellisCode:
    """The code of stored tables at these rates; planning asks for the same ones again and again."""
    return TrellisCode(MEMORY, rates)


def book_starts(codes: Sequence[TrellisCode], size: int | None = None) -> list[dict[float, int]]:
    """First number of each code's codebook for each rate, where several codes have one array of codebooks.

    The codebooks of one code follow those of the other. All codes share the codebook of a rate, which is with
    the first of them; in older files each has codebooks of its own.

    Args:
        codes: of the classes of rows.
        size: numbers in the array, which tells the two apart; None for shared codebooks.

    Raises:
        ValueError: neither takes ``size`` numbers.
    """
    for own in (False, True):
        starts: list[dict[float, int]] = []
        shared: dict[float, int] = {}
        end = 0
        for code in codes:
            found = {} if own else shared
            for rate, book in code.books.items():
                if rate not in found:
                    found[rate], end = end, end + book.stop - book.start
            starts.append({rate: found[rate] for rate in code.books})
        if size in (None, end):
            return starts
    raise ValueError(f"codebooks of {size:,} numbers, not {end:,}")
