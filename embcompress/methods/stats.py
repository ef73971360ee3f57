"""Statistics of a table, from which methods plan: spectrum, row weights, and a sample of rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DTYPES, Floats
from embcompress.errors import InputError
from embcompress.linalg.allocation import Division, divisions
from embcompress.linalg.gram import gram
from embcompress.linalg.metric import Metric, seen_in
from embcompress.linalg.residual import row_squares
from embcompress.linalg.spectrum import Spectrum, refined, spectrum
from embcompress.rows import Rows

SAMPLE_ROWS = 3072
"""Number of rows in a sample. If the squared errors of rows scatter by half their size, the sample gives
their mean to 1.1 % and its root to 0.6 %. Rows that weigh much are always in the sample."""

CLASSES = 8
"""Most classes that rows are divided into by energy."""

MEMBERS = 64
"""Fewest rows of a class, and of each class in a sample, since scales are estimated from them."""

_LEAST = 1e-280
"""Least sum of squares of a table that is not all zero: below it, squares of small values underflow."""

Weights = NDArray[np.float64]
"""Weight of each row of a table (V), all above 0."""

Advance = Callable[[int], None]
"""Called with the number of rows read."""


def ignore_progress(count: int) -> None:
    """Do nothing with the number of rows read."""


@dataclass(frozen=True)
class Sample:
    """A sample of the rows of a table.

    Attributes:
        places: indices of the rows (n), ascending.
        rows: the rows (n×d) in float32; infinite where they exceed its range.
        weights: of the rows (n). A weighted sum over the sample estimates the weighted sum over the table.
        metric: in which errors are measured; None if all columns count alike.
    """

    places: NDArray[np.intp]
    rows: NDArray[np.float32]
    weights: NDArray[np.float64]
    metric: Metric | None = None

    def relative_error(self, approximation: NDArray[Any]) -> float:
        """Weighted relative Frobenius error of an approximation of the rows (n×d), in the metric."""
        total = self.weights @ row_squares(seen_in(self.metric, self.rows))
        left = self.weights @ row_squares(seen_in(self.metric, self.rows - approximation))
        return float(np.sqrt(left / total)) if total > 0 else 0.0


@dataclass(frozen=True)
class TableStats:
    """A table and its statistics, measured in one pass.

    With a metric, energies and spectrum are those of the rows as it sees them, E A.

    Attributes:
        name: the table's name, for error messages.
        rows: its contents.
        weights: of the rows (V); None if all count alike.
        energies: weight times sum of squares of each row (V); 0 only for rows of zeros.
        spectrum: of the weighted Gram matrix.
        precise: whether the Gram matrix was computed in float64, because small errors are to be predicted.
        metric: in which errors are measured; None if all columns count alike.
    """

    name: str
    rows: Rows = field(repr=False)
    weights: Weights | None = field(repr=False)
    energies: NDArray[np.float64] = field(repr=False)
    spectrum: Spectrum = field(repr=False)
    precise: bool = False
    metric: Metric | None = None

    @functools.cached_property
    def analysis(self) -> NDArray[np.float64]:
        """d×min(V, d): the coefficients of a row e are e times this."""
        vectors = self.spectrum.vectors
        return vectors if self.metric is None else self.metric.root @ vectors

    @functools.cached_property
    def synthesis(self) -> NDArray[np.float64]:
        """min(V, d)×d: a row is the sum of these, each times its coefficient."""
        vectors = self.spectrum.vectors
        return vectors.T if self.metric is None else vectors.T @ self.metric.inverse

    def squares(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """Sum of squares of each row of a block (n×d), in the metric."""
        return row_squares(seen_in(self.metric, block))

    @functools.cached_property
    def fits_float32(self) -> bool:
        """Whether the norm of every row fits float32, and so its coefficients in any orthonormal basis."""
        return bool((self.energies <= np.square(DTYPES["F32"].largest) * self.weights_of()).all())

    @property
    def typical(self) -> float:
        """Root mean square of the numbers of the table."""
        return float(np.sqrt((self.energies / self.weights_of()).mean() / self.rows.shape[1]))

    @functools.cached_property
    def divisions(self) -> list[Division]:
        """The best division of the rows by energy into 1 class, 2, … ``CLASSES``, as far as there are any."""
        return divisions(self.energies, CLASSES, MEMBERS)

    @functools.cached_property
    def sample(self) -> Sample:
        """A sample drawn by weight, energy and class, always the same; all rows of a small table."""
        return draw(self, SAMPLE_ROWS)

    def weights_of(self, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
        """Weights of rows ``start:stop``, by default of all rows; ones if the table has no weights."""
        stop = self.rows.shape[0] if stop is None else stop
        return np.ones(stop - start) if self.weights is None else self.weights[start:stop]


def measure(
    rows: Rows,
    name: str,
    *,
    precise: bool = False,
    advance: Advance | None = None,
    weights: Weights | None = None,
    metric: Metric | None = None,
) -> TableStats:
    """Measure a table E with row weights w in one pass: energies, and the spectrum of Eᵀ diag(w) E.

    The top eigenvectors V_r of that matrix minimize Σ_i w_i ‖E_i − E_i V_r V_rᵀ‖², since they give the best
    approximation of rank r of diag(√w) E (Eckart & Young 1936). In a metric M = A² the same holds for the
    rows E A, and E A V_r V_rᵀ A⁻¹ is the approximation of rank r with the least Σ_i w_i (E_i − Ê_i) M (E_i −
    Ê_i)ᵀ.

    Args:
        rows: the table.
        name: its name, for error messages.
        precise: compute the Gram matrix in float64, and small eigenvalues, if any, in a second pass.
        advance: called with the number of rows read.
        weights: of the rows (V); None if all count alike.
        metric: in which errors are measured; None if all columns count alike.

    Raises:
        InputError: the table holds NaN, infinity, or values whose squares overflow or underflow.
    """
    roots = None if weights is None else np.sqrt(weights)
    energies = np.empty(rows.shape[0])

    def weighted() -> Iterator[Floats]:
        for start, stop in rows.spans():
            block = rows.read(start, stop)
            if precise and not (roots is None and metric is None):
                block = block.astype(np.float64)
            block = seen_in(metric, block)
            if roots is not None:
                block = _scaled(block, roots[start:stop, None])
            yield block

    def blocks() -> Iterator[Floats]:
        for (start, stop), block in zip(rows.spans(), weighted(), strict=True):
            energies[start:stop] = row_squares(block)
            yield block
            if advance:
                advance(stop - start)

    found = gram(blocks(), rows.shape[1], precise=precise)
    if found.bad_rows:
        raise InputError(
            f"{name}: {found.bad_rows:,} of {rows.shape[0]:,} rows hold NaN or infinity, "
            f"the first is row {found.first_bad_row:,}",
            remedy="repair the table first, or replace them with zeros: factorize --nan zero",
        )
    if not found.matrix.trace() < float("inf"):
        raise InputError(f"{name}: values beyond 1e150 cannot be squared", remedy="scale the table first")
    if found.matrix.trace() < _LEAST and any(block.any() for block in rows.blocks()):
        raise InputError(f"{name}: values below 1e-140 cannot be squared", remedy="scale the table first")
    count = rows.shape[0]
    spectrum_of = refined(found.matrix, count, weighted) if precise else spectrum(found.matrix, count)
    return TableStats(name, rows, weights, energies, spectrum_of, precise, metric)


def _scaled(block: NDArray[Any], factors: NDArray[np.float64]) -> NDArray[Any]:
    """Rows times one factor each, in float64 if the type of the block cannot hold the products."""
    with np.errstate(over="raise", under="raise"):
        try:
            scaled: NDArray[Any] = block * factors.astype(block.dtype)
        except FloatingPointError:
            scaled = block.astype(np.float64) * factors
    return scaled


def draw(stats: TableStats, count: int) -> Sample:
    """Draw about ``count`` rows: a third by weight, a third by energy, and as many from each class of energy.

    Errors grow with rows, and a few large rows may hold much of the error. By weight alone most samples would
    miss the large rows, by energy alone the small ones, and by both a class of many rows that count little.
    The sampling is systematic (Madow 1949): the cumulative probabilities are cut at equal steps from a fixed
    start. A row whose probability would be above one is always taken and counts only for itself.
    """
    rows, total = stats.rows, stats.rows.shape[0]
    weights = stats.weights_of()
    if total <= count:
        places, scaled = np.arange(total), weights
    else:
        sizes = weights / weights.sum()
        if stats.spectrum.total > 0:
            classes = stats.divisions[-1].classes_of(np.argsort(stats.energies, kind="stable"))
            even = 1 / np.bincount(classes)[classes]
            sizes = (sizes + stats.energies / stats.energies.sum() + even / even.sum()) / 3
        probabilities = _probabilities(sizes, count)
        # Shuffled, since neighbours in a vocabulary are alike; the fixed seed is part of the method.
        order = np.random.default_rng(0).permutation(total)
        steps = np.cumsum(probabilities[order])
        taken = np.floor(steps + 0.5) > np.floor(steps - probabilities[order] + 0.5)
        places = np.sort(order[taken])
        scaled = weights[places] / probabilities[places]
    # Single rows of a large table: the rows between them are not read.
    blocks = rows.blocks() if total <= count else (rows.read(int(i), int(i) + 1) for i in places)
    with np.errstate(over="ignore"):
        drawn = np.concatenate([*blocks]).astype(np.float32, copy=False)
    return Sample(places, drawn, scaled, stats.metric)


def _probabilities(weights: Weights, count: int) -> NDArray[np.float64]:
    """min(1, c·w), with c such that they add up to ``count``, which is less than the number of weights."""
    descending = np.sort(weights)[::-1]
    # If the k largest are always taken, c = (count - k) / the sum of the rest; the first consistent k.
    rest = descending.sum() - np.append(0.0, np.cumsum(descending)[: count - 1])
    scales = (count - np.arange(count)) / rest
    certain = int(np.argmax(descending[:count] * scales <= 1))
    probabilities: NDArray[np.float64] = np.minimum(1.0, weights * scales[certain])
    return probabilities
