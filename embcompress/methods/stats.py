"""What is known of a table before it is compressed: its spectrum, the weights of its rows, and a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DTYPES, Floats
from embcompress.errors import InputError
from embcompress.linalg.gram import gram
from embcompress.linalg.residual import row_squares
from embcompress.linalg.spectrum import Spectrum, spectrum
from embcompress.rows import Rows

SAMPLE_ROWS = 2048
"""Rows of a sample. Squared errors that differ from row to row by half their size are then known to
1.1 %, errors to 0.6 %; rows that weigh much are always among them."""

_LEAST = 1e-280
"""Least sum of squares of a table that is not all zero: below, those of its small values are rounded away."""

Weights = NDArray[np.float64]
"""How much each row of a table counts (V), all above 0."""

Advance = Callable[[int], None]
"""Called with the number of rows read."""


def ignore_progress(count: int) -> None:
    """The callback of callers that need none."""


@dataclass(frozen=True)
class Sample:
    """Some rows of a table, each with the weight of those it stands for.

    Attributes:
        places: which rows they are, ascending.
        rows: the rows (n×d), float32; infinite where they leave its range.
        weights: (n); the weighted sum of anything over the sample estimates that over the table.
    """

    places: NDArray[np.intp]
    rows: NDArray[np.float32]
    weights: NDArray[np.float64]

    def relative_error(self, stand_in: NDArray[Any]) -> float:
        """Relative Frobenius error, weighted, of what stands for the rows (n×d)."""
        total = self.weights @ row_squares(self.rows)
        left = self.weights @ row_squares(self.rows - stand_in)
        return float(np.sqrt(left / total)) if total > 0 else 0.0


@dataclass(frozen=True)
class TableStats:
    """A table and what was measured of it, in one pass.

    Attributes:
        name: the table's name, for errors.
        rows: its contents.
        weights: of each row (V), None for all alike.
        energies: weight times sum of squares of each row (V), 0 for a row of zeros alone.
        spectrum: of the weighted Gram matrix.
        precise: whether that was made in float64, and whether the work needs it.
    """

    name: str
    rows: Rows = field(repr=False)
    weights: Weights | None = field(repr=False)
    energies: NDArray[np.float64] = field(repr=False)
    spectrum: Spectrum = field(repr=False)
    precise: bool = False

    @functools.cached_property
    def fits_float32(self) -> bool:
        """Whether a row has coefficients in float32 in whatever orthonormal basis: its norm does."""
        return bool((self.energies <= np.square(DTYPES["F32"].largest) * self.weights_of()).all())

    @property
    def typical(self) -> float:
        """The root mean square of its numbers."""
        return float(np.sqrt((self.energies / self.weights_of()).mean() / self.rows.shape[1]))

    @functools.cached_property
    def sample(self) -> Sample:
        """Rows drawn by weight and energy, the same each time; the whole table where it is small."""
        return draw(self, SAMPLE_ROWS)

    def weights_of(self, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
        """Weights of rows ``start:stop``, of all when nothing is said."""
        stop = self.rows.shape[0] if stop is None else stop
        return np.ones(stop - start) if self.weights is None else self.weights[start:stop]


def measure(
    rows: Rows,
    name: str,
    *,
    precise: bool = False,
    advance: Advance | None = None,
    weights: Weights | None = None,
) -> TableStats:
    """Measure the spectrum of a table E, in one pass; with row weights w that of Eᵀ diag(w) E.

    The top eigenvectors V_r of the weighted matrix minimize Σ_i w_i ‖E_i − E_i V_r V_rᵀ‖²: the rows
    are those of diag(√w) E, whose best approximation of rank r they give (Eckart & Young 1936).

    Raises:
        InputError: the table holds NaN, infinity, or values whose squares overflow or vanish.
    """
    roots = None if weights is None else np.sqrt(weights)
    energies = np.empty(rows.shape[0])

    def blocks() -> Iterator[Floats]:
        for start, stop in rows.spans():
            block = rows.read(start, stop)
            if roots is not None:
                block = _scaled(block.astype(np.float64) if precise else block, roots[start:stop, None])
            energies[start:stop] = row_squares(block)
            yield block
            if advance:
                advance(stop - start)

    found = gram(blocks(), rows.shape[1], precise=precise)
    if found.bad_rows:
        raise InputError(
            f"{name}: {found.bad_rows:,} of {rows.shape[0]:,} rows hold NaN or infinity, "
            f"the first is row {found.first_bad_row:,}",
            remedy="repair the table first, or take them for zeros with factorize --nan zero",
        )
    if not found.matrix.trace() < float("inf"):
        raise InputError(f"{name}: values beyond 1e150 cannot be squared", remedy="scale the table first")
    if found.matrix.trace() < _LEAST and any(block.any() for block in rows.blocks()):
        raise InputError(f"{name}: values below 1e-140 cannot be squared", remedy="scale the table first")
    return TableStats(name, rows, weights, energies, spectrum(found.matrix, rows.shape[0]), precise)


def _scaled(block: NDArray[Any], factors: NDArray[np.float64]) -> NDArray[Any]:
    """Rows times a factor each, in float64 where their own type does not hold the products."""
    with np.errstate(over="raise", under="raise"):
        try:
            scaled: NDArray[Any] = block * factors.astype(block.dtype)
        except FloatingPointError:
            scaled = block.astype(np.float64) * factors
    return scaled


def draw(stats: TableStats, count: int) -> Sample:
    """About ``count`` rows, half of the chances in proportion to weights, half to energies.

    Errors are about as large as rows are, and a few large rows may hold much of them: with chances by
    weight alone they would be missing from most samples, with chances by energy alone the small ones.
    Systematic sampling (Madow 1949): the cumulated chances are cut at equal steps from a fixed
    start. A row whose chance would be over one is taken for sure and stands for itself.
    """
    rows, total = stats.rows, stats.rows.shape[0]
    weights = stats.weights_of()
    if total <= count:
        places, scaled = np.arange(total), weights
    else:
        sizes = weights / weights.sum()
        if stats.spectrum.total > 0:
            sizes = (sizes + stats.energies / stats.energies.sum()) / 2
        chances = _chances(sizes, count)
        # A shuffled order, since neighbours in a vocabulary are alike; the seed is part of the method.
        order = np.random.default_rng(0).permutation(total)
        steps = np.cumsum(chances[order])
        taken = np.floor(steps + 0.5) > np.floor(steps - chances[order] + 0.5)
        places = np.sort(order[taken])
        scaled = weights[places] / chances[places]
    # Of a large table one row at a time: what lies between them need not be read.
    blocks = rows.blocks() if total <= count else (rows.read(int(i), int(i) + 1) for i in places)
    with np.errstate(over="ignore"):
        drawn = np.concatenate([*blocks]).astype(np.float32, copy=False)
    return Sample(places, drawn, scaled)


def _chances(weights: Weights, count: int) -> NDArray[np.float64]:
    """min(1, c·w) with c such that they add up to ``count``, which is less than the number of weights."""
    descending = np.sort(weights)[::-1]
    # With the k largest taken for sure, c = (count - k) / the sum of the rest; the first k that fits.
    rest = descending.sum() - np.append(0.0, np.cumsum(descending)[: count - 1])
    scales = (count - np.arange(count)) / rest
    sure = int(np.argmax(descending[:count] * scales <= 1))
    chances: NDArray[np.float64] = np.minimum(1.0, weights * scales[sure])
    return chances
