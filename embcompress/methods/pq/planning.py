"""Plans a trellis-coded table with a model of the coder: classes of rows, rates and sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embcompress.linalg.allocation import allocate, distortion, split_bits
from embcompress.linalg.classes import class_planes
from embcompress.linalg.packing import packed_width, widest
from embcompress.linalg.trelliscode import MEMORY, code_of
from embcompress.methods.stats import MEMBERS, TableStats

_LEAST_ROW = 2
"""Bytes of the shortest row, which holds the first state of the trellis and at least one component."""

_ROUNDS = 6
"""Most iterations in which sizes and rates are adapted to each other."""

_SHORTER = 17
"""Row lengths to try if that does not converge."""

_RANKS = 24
"""Numbers of components to try, in a geometric sequence."""

_WORTH = 0.995
"""More classes are considered if they leave at most this fraction of the distortion."""

_IN_VAIN = 2
"""Numbers of classes, one after the other, that may gain nothing before no more are tried."""

_NOISE = {5: 10**-2.51, 6: 10**-3.09, 7: 10**-3.69, 8: 10**-4.30}
"""Relative squared error of a right factor in integers, by bits, with a scale per row."""

RIGHT_BITS = tuple(_NOISE)
"""Bits that integers of the right factor may have."""


@dataclass(frozen=True)
class _Split:
    """One way to divide the rows into classes, and what all plans for it share.

    Attributes:
        classes: class of each row (V), 0 … c - 1.
        counts: rows in each class (c).
        variances: weighted squares of the components in each class (c×r), estimated from a sample.
        zeros: indices of rows of zeros.
        columns: d.
    """

    classes: NDArray[np.uint8]
    counts: NDArray[np.int64]
    variances: NDArray[np.float64]
    zeros: NDArray[np.intp]
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes that say which class a row is in, and which rows are zero."""
        return 4 * len(self.zeros) + class_planes(len(self.counts)) * -(-len(self.classes) // 8)


@dataclass(frozen=True)
class TrellisPlan:
    """Classes of rows, their rates and sizes.

    Attributes:
        classes: class of each row (V), 0 … c - 1.
        counts: rows in each class (c).
        rates: bits of each component (r), one array per class.
        row_bytes: bytes of a row in each class (c).
        zeros: indices of rows of zeros.
        bits: bits of the right factor's integers.
        distortion: weighted squared error by the model, including that of the right factor.
    """

    classes: NDArray[np.uint8]
    counts: NDArray[np.int64]
    rates: tuple[NDArray[np.float64], ...]
    row_bytes: NDArray[np.int64]
    zeros: NDArray[np.intp]
    bits: int
    distortion: float

    @property
    def rank(self) -> int:
        """Components kept."""
        return len(self.rates[0])


def plans(stats: TableStats, limit: int) -> list[TrellisPlan]:
    """Best plans within ``limit`` bytes, for combinations of classes, rank, half bits and right factor."""
    sample = stats.sample
    if not stats.fits_float32:
        return []
    squares = np.square(sample.rows @ stats.analysis.astype(np.float32), dtype=np.float64)
    squares *= sample.weights[:, None]
    zeros = np.flatnonzero(stats.energies == 0)
    found: list[TrellisPlan] = []
    least, in_vain = math.inf, 0
    for classes in _class_choices(stats):
        counts = np.bincount(classes)
        member = classes[sample.places]
        variances = np.stack([squares[member == index].sum(axis=0) for index in range(len(counts))])
        split = _Split(classes, counts, variances, zeros, stats.rows.shape[1])
        some = _plans_of(stats, split, limit)
        found += some
        best = min((plan.distortion for plan in some), default=math.inf)
        in_vain = 0 if best < least else in_vain + 1
        least = min(least, best)
        if in_vain == _IN_VAIN:
            break
    return found


def _plans_of(stats: TableStats, split: _Split, limit: int) -> list[TrellisPlan]:
    """Plans for one way to divide the rows."""
    promising = _promising_rank(stats, limit, split.variances.sum(axis=0))
    # Rows that get more bytes than others may make more components worthwhile than all rows together.
    most = split.variances.shape[1]
    ranks = sorted({min(factor * promising, most) for factor in (1, 2, most)})
    tried = itertools.product(ranks, (True, False), _right_choices(split.columns))
    plans = (_plan(split, limit, rank, pairs=pairs, bits=bits) for rank, pairs, bits in tried)
    return [plan for plan in plans if plan is not None]


def extra_shape(more: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[int, int]:
    """Shape of the bytes that rows have beyond those of class 0, one class after the other.

    Args:
        more: how many each row of a class has (c); the first is 0.
        counts: rows in each class (c).

    Raises:
        ValueError: a later class has no more bytes than class 0.
    """
    if (more[1:] <= 0).any():
        raise ValueError(f"classes of {', '.join(map(str, more))} more bytes a row")
    width = int(np.gcd.reduce(more))
    return int(more @ counts) // max(width, 1), width


def smallest(shape: tuple[int, int]) -> int:
    """Fewest bytes of a (V, d) table: one class, with one component of one bit."""
    rates = np.ones(1)
    right = min(packed_width(shape[1], bits) for bits in _right_choices(shape[1]))
    return shape[0] * code_of(rates).row_bytes + _fixed_bytes([rates]) + right


def _right_choices(columns: int) -> list[int]:
    """Bits of integers that a reader can infer from the bytes of a row."""
    return [bits for bits in _NOISE if widest(columns, packed_width(columns, bits)) == bits]


def _class_choices(stats: TableStats) -> Iterator[NDArray[np.uint8]]:
    """The class of each row, for every number of classes that may help; more energy, higher class."""
    left, ascending = math.inf, np.argsort(stats.energies, kind="stable")
    for division in stats.divisions:
        if division.left <= _WORTH * left:
            classes = division.classes_of(ascending)
            drawn = np.bincount(classes[stats.sample.places], minlength=len(division.sizes))
            if len(drawn) == 1 or drawn.min() >= MEMBERS:
                left = division.left
                yield classes


def _plan(split: _Split, limit: int, rank: int, *, pairs: bool, bits: int) -> TrellisPlan | None:
    """Rates of at most ``rank`` components within ``limit`` bytes; None if not even the shortest rows fit.

    The bytes of everything but the rows depend on the number of components and their rates, which depend on
    the bytes left for the rows. So both are adapted to each other until they fit and no longer change. In a
    small table this may fail, since the codebooks of long rows leave no room for the rows; then shorter ones
    are tried.
    """
    width = packed_width(split.columns, bits)
    most = limit - _overhead(split, [np.ones(rank) for _ in split.counts], width)
    tried = _allocated(split, most, rank, width, pairs=pairs)
    for _ in range(_ROUNDS - 1):
        if tried is None or (tried.rank == rank and tried.nbytes <= limit):
            break
        rank = tried.rank
        tried = _allocated(split, limit - _overhead(split, tried.rates, width), rank, width, pairs=pairs)
    if len(split.counts) == 1 and (tried is None or tried.nbytes > limit):
        budgets = np.linspace(most, _LEAST_ROW * int(split.counts[0]), _SHORTER).astype(int)
        shorter = (_allocated(split, budget, rank, width, pairs=pairs) for budget in budgets)
        shortest = _sized(split, (np.ones(1),), width)
        found = (one for one in (*shorter, shortest) if one is not None and one.nbytes <= limit)
        tried = next(found, None)
    if tried is None or tried.nbytes > limit:
        return None
    left = sum(
        distortion(of_class[: tried.rank], rates) + of_class[tried.rank :].sum()
        for of_class, rates in zip(split.variances, tried.rates, strict=True)
    )
    noise = _NOISE[bits] * float(split.variances.sum())
    return TrellisPlan(
        split.classes, split.counts, tried.rates, tried.row_bytes, split.zeros, bits, left + noise
    )


@dataclass(frozen=True)
class _Allocation:
    """Rates of each class, and the sizes that follow.

    Attributes:
        rates: bits of each component (r), one array per class.
        row_bytes: bytes of a row in each class (c).
        nbytes: bytes of all parts.
    """

    rates: tuple[NDArray[np.float64], ...]
    row_bytes: NDArray[np.int64]
    nbytes: int

    @property
    def rank(self) -> int:
        return len(self.rates[0])


def _allocated(split: _Split, budget: int, rank: int, width: int, *, pairs: bool) -> _Allocation | None:
    """Rates if all rows together have ``budget`` bytes; None if those are too few, or two classes useless."""
    counts, variances = split.counts, split.variances[:, :rank]
    lengths = _row_lengths(variances, counts, budget)
    if lengths is None:
        return None
    found = [
        _rates(v, 8 * length - MEMORY, pairs=pairs) for v, length in zip(variances, lengths, strict=True)
    ]
    used = 1 + max(int(np.flatnonzero(each)[-1]) for each in found)
    coded = _sized(split, tuple(each[:used] for each in found), width)
    if (np.diff(coded.row_bytes) <= 0).any():
        return None  # with fewer bits or the most there are: fewer classes are as good
    return coded


def _sized(split: _Split, rates: tuple[NDArray[np.float64], ...], width: int) -> _Allocation:
    """Sizes at these rates, with ``width`` bytes per component for the right factor."""
    row_bytes = np.array([code_of(each).row_bytes for each in rates])
    return _Allocation(rates, row_bytes, _overhead(split, rates, width) + int(row_bytes @ split.counts))


def _overhead(split: _Split, rates: Sequence[NDArray[np.float64]], width: int) -> int:
    """Bytes of everything except the rows."""
    return split.nbytes + len(rates[0]) * width + _fixed_bytes(rates)


def _promising_rank(stats: TableStats, limit: int, variances: NDArray[np.float64]) -> int:
    """Number of components that are worth their row of the right factor, if all rows are in one class.

    In a small table few rows share the right factor, and it may take more bytes than they do.
    """
    rows, columns = stats.rows.shape
    bits = min(_right_choices(columns), key=lambda b: abs(b - 6))
    best, least = 1, math.inf
    for rank in np.unique(np.geomspace(1, len(variances), _RANKS).astype(int)):
        overhead = _fixed_bytes([np.ones(rank)]) + rank * packed_width(columns, bits)
        spare = 8 * (limit - overhead) / rows - MEMORY
        if spare >= 1:
            left = distortion(variances[:rank], allocate(variances[:rank], spare)) + variances[rank:].sum()
            best, least = (int(rank), left) if left < least else (best, least)
    return best


def _row_lengths(variances: NDArray[np.float64], counts: NDArray[np.int64], rest: int) -> list[int] | None:
    """Bytes of a row in each class, with at most ``rest`` for all rows; None if they do not fit."""
    rows = int(counts.sum())
    if rest < _LEAST_ROW * rows:
        return None
    if len(counts) == 1:
        return [rest // rows]
    # The largest class first: what rounding leaves of its bytes goes to the others.
    lengths, waiting = [0] * len(counts), sorted(range(len(counts)), key=lambda c: -counts[c])
    while waiting:
        index, spare = waiting[0], 8.0 * rest - MEMORY * int(counts[waiting].sum())
        bits = split_bits(variances[waiting], counts[waiting], spare)[0] + MEMORY
        others = _LEAST_ROW * int(counts[waiting[1:]].sum())
        most = (rest - others) // int(counts[index])
        lengths[index] = min(max(_LEAST_ROW, int(bits // 8)), most) if others else most
        rest -= lengths[index] * int(counts[index])
        del waiting[0]
    return lengths


def _rates(variances: NDArray[np.float64], bits: int, *, pairs: bool) -> NDArray[np.float64]:
    """Rates of the components; the first gets at least one bit."""
    rates = allocate(variances, bits, pairs=pairs)
    if not rates.any():
        rates[0] = 1
    return rates


def _fixed_bytes(rates: Sequence[NDArray[np.float64]]) -> int:
    """Bytes of rates, scales and codebooks, including the scales of the right factor."""
    sizes = {
        rate: int(book.stop - book.start) for each in rates for rate, book in code_of(each).books.items()
    }
    rank = len(rates[0])
    return 2 * sum(sizes.values()) + 5 * len(rates) * rank + 4 * rank
