"""Chooses the rank and bits of an LPLR, and predicts its error.

A small table is encoded on trial. For a large one a sample of rows is rounded, and the error after the fit of
the right factor is computed from theory: a fit to the sample alone would look better than one to the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embcompress.linalg.integers import dequantize, quantize
from embcompress.linalg.metric import Metric, seen_in
from embcompress.linalg.packing import packed_width
from embcompress.methods.stats import SAMPLE_ROWS, TableStats

LEFT_BITS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Bits per number of the left factor to try."""

RIGHT_BITS = (4, 6, 8)
"""Bits per number of the right factor to try."""

LOSSES = (1.0, 0.3634, 0.1188, 0.0374, 0.0115, 0.0035, 0.00104, 0.0003, 0.000088)
"""Fraction of the variance of a Gaussian that the best uniform rounding to 0 … 8 bits loses (Max 1960,
"Quantizing for minimum distortion", table II, which ends at 5 bits; the others by its equations)."""

SEED = 0
"""Seed of the rotations."""

_USUAL = 8
"""Root mean square to which the left factor is scaled, well inside the range of float16 scales."""

_EACH, _STEPS = 32, 6
"""All ranks up to the first number are tried, beyond it the second number of ranks per doubling."""

_VALUES, _LEAST_ROWS = 1 << 20, 256
"""Most numbers in the sketch of a trial, and its fewest rows, which take precedence at large ranks."""

_ROUGH_VALUES = 1 << 14
"""The same for a quick estimate."""

_ENOUGH = 8
"""Rows per component from which on a trial makes the joint fit of all components."""

_STEADY = 4
"""Least rank at which a trial says something about others; at smaller ones a scale per row loses less."""

_LIKE = 0.5
"""What a trial says: at another rank s rounding loses at least this much of its loss at r, times r/s or s/r,
whichever is smaller, and with fewer bits no less. Where the spectrum is flat the loss hardly depends on the
rank; where it is steep it falls as 1/r. So what is left out is clearly worse, most often for too few bits."""

_END = 1e-3
"""The spectrum ends at a rank that leaves less than this fraction of what the rank before it left. Nothing is
concluded about ranks from there on: a table of few distinct rows loses hardly anything there."""

_RIGHT_ROWS = 64
"""Rows of the right factor that a trial rounds."""


@dataclass(frozen=True)
class FactorPlan:
    """Rank and bits of a table, decided before it is encoded.

    Attributes:
        rank: components kept.
        bits: bits per number of the left and of the right factor.
        error: predicted relative Frobenius error.
    """

    rank: int
    bits: tuple[int, int]
    error: float


class Planner:
    """Finds plans for a table, and remembers its trials.

    Args:
        stats: the table.
        rough: make each trial with few rows, for a quick estimate.
    """

    def __init__(self, stats: TableStats, *, rough: bool = False) -> None:
        self._stats, (count, _) = stats, stats.rows.shape
        small = count <= (_LEAST_ROWS if rough else SAMPLE_ROWS) and count * stats.spectrum.limit <= _VALUES
        shared: dict[int, float] | None = {} if rough else None
        # Each trial holds a rotation, so only a few are kept.
        trial = lru_cache(4)(lambda rank: _Whole(stats, rank) if small else _Trial(stats, rank, shared))
        self._tried = cache(lambda rank, left: self._noted(rank, left, trial(rank).shares(LEFT_BITS[left])))
        self._cut = np.square(stats.spectrum.relative_errors())
        # The least that a fraction can be, by index in LEFT_BITS and by rank, judging from all trials so far.
        self._least = np.zeros((len(LEFT_BITS), len(self._cut)))
        ends = np.flatnonzero(self._cut[1:-1] < _END * self._cut[:-2])
        self._judged = np.arange(_STEADY, ends[0] + 1 if len(ends) else len(self._cut))

    def _noted(self, rank: int, left: int, shares: Sequence[float]) -> NDArray[np.float64]:
        """Return the outcome of a trial, and note what it says of other ranks and of fewer bits."""
        if rank >= _STEADY:
            share, ranks = _LIKE * min(*shares, LOSSES[LEFT_BITS[left]]), self._judged
            known = self._least[: left + 1, ranks]
            self._least[: left + 1, ranks] = np.maximum(known, share * np.minimum(ranks / rank, rank / ranks))
        return np.array(shares)

    def best(self, limit: int) -> FactorPlan | None:
        """Find the plan with the least predicted error in ``limit`` bytes, the smaller one of two equal ones.

        The predicted error of a plan does not depend on the limit. Its square is the part that the rank cuts
        off plus a fraction of the part that it keeps. That fraction comes from trials at some ranks, and
        is interpolated linearly in log r between them. A trial is not made if the others show that it will
        not be better than the best so far.
        """
        shape, cut = self._stats.rows.shape, self._cut
        least: tuple[float, int] = (np.inf, 0)
        plan: FactorPlan | None = None
        for left, low, high, top in _intervals(shape, limit, cut):
            if cut[top] + self._least[left, low : top + 1].min() * (1 - cut[top]) >= least[0]:
                continue
            within = np.arange(low, top + 1)
            shares = np.zeros((len(within), len(RIGHT_BITS)))
            if self._stats.spectrum.total > 0:
                ends = self._tried(low, left), self._tried(high, left)
                for j in range(len(RIGHT_BITS)):
                    shares[:, j] = np.interp(np.log(within), np.log([low, high]), [end[j] for end in ends])
            squares = cut[within, None] + np.maximum(shares, 0) * (1 - cut[within, None])
            sizes = nbytes(shape, within)[:, left]
            squares[sizes > limit] = np.inf
            place = int(np.lexsort((sizes.ravel(), squares.ravel()))[0])
            found = float(squares.flat[place]), int(sizes.flat[place])
            if found < least:
                least, (row, right) = found, divmod(place, len(RIGHT_BITS))
                bits = (LEFT_BITS[left], RIGHT_BITS[right])
                plan = FactorPlan(int(within[row]), bits, float(np.sqrt(found[0])))
        return plan


def nbytes(shape: tuple[int, int], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes for each rank, each of ``LEFT_BITS`` and each of ``RIGHT_BITS`` (one axis for each)."""
    ranks = ranks[:, None, None]
    left = -(-ranks * np.array(LEFT_BITS)[:, None] // 8)
    right = np.array([packed_width(shape[1], bits) for bits in RIGHT_BITS])
    sizes: NDArray[np.int64] = shape[0] * (left + 2) + ranks * (right + 4) + 2
    return sizes


def sketch(stats: TableStats, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """S = V_r Q (d×r), times a power of two that brings E S to about ``_USUAL``, and Q (r×r).

    In a metric M = A² it is A V_r Q.

    Q is the orthogonal factor of a Gaussian matrix with fixed signs, so it is uniformly distributed (Mezzadri
    2007, "How to generate random matrices from the classical compact groups", section 5).
    """
    kept = stats.spectrum.eigenvalues[:rank].sum()
    weight = stats.rows.shape[0] if stats.weights is None else stats.weights.sum()
    # Clipped so that the basis is finite in float32.
    power = 0.0 if kept == 0 else np.clip(np.log2(_USUAL) - np.log2(kept / (weight * rank)) / 2, -120, 120)
    q, triangle = np.linalg.qr(np.random.default_rng(SEED).standard_normal((rank, rank)))
    q *= np.copysign(1, triangle.diagonal())
    return stats.analysis[:, :rank] @ q * 2.0 ** round(power), q


def fitted(squares: NDArray[np.float64], products: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """R = (A + μI)⁻¹ B for A = LᵀWL and B = LᵀWE; ``method.py`` defines μ, which depends on the bits of R."""
    price = LOSSES[bits] * squares.trace() / len(squares)
    # If the price is 0, all left rows are zeros and so are the products: zeros of the right shape.
    return np.linalg.solve(squares + price * np.eye(len(squares)), products) if price > 0 else products


def _tried(limit: int) -> list[int]:
    """Ranks to try, ascending from 1 to the limit."""
    doublings = np.arange(0, np.log2(limit), 1 / _STEPS)
    each = range(1, min(_EACH, limit) + 1)
    return sorted({*each, *(int(r) for r in np.rint(2**doublings) if r <= limit), limit})


def _intervals(
    shape: tuple[int, int], limit: int, cut: NDArray[np.float64]
) -> Iterator[tuple[int, int, int, int]]:
    """Intervals of ranks between trials, as (index in LEFT_BITS, first, last, last that fits).

    The most promising come first, estimated from the spectrum and ``LOSSES``.
    """
    ranks, found = _tried(min(shape)), []
    tops = (nbytes(shape, np.arange(1, min(shape) + 1)).min(axis=2) <= limit).sum(axis=0).tolist()
    for left, bits in enumerate(LEFT_BITS):
        for low, high in zip(ranks, [*ranks[1:], ranks[-1]], strict=True):
            if low <= tops[left]:
                top = min(high, tops[left])
                found.append((cut[top] + LOSSES[bits] * (1 - cut[top]), left, low, high, top))
    return (interval[1:] for interval in sorted(found))


class _Whole:
    """A trial at one rank that encodes the whole of a small table."""

    def __init__(self, stats: TableStats, rank: int) -> None:
        self._rows, self._weights = stats.sample.rows.astype(np.float64), stats.sample.weights
        self._metric = stats.metric
        self._sketch = stats.sample.rows @ sketch(stats, rank)[0].astype(np.float32)
        self._total = self._weights @ stats.squares(self._rows)
        self._cut = float(stats.spectrum.relative_errors()[rank] ** 2)

    def shares(self, bits: int) -> list[float]:
        """Squared error beyond the truncation, as a fraction of the squares kept, by ``RIGHT_BITS``."""
        left = (self._sketch + _noise(self._sketch, bits)).astype(np.float64)
        weighted = (left * self._weights[:, None]).T
        squares, products = weighted @ left, weighted @ self._rows
        seen = seen_in(self._metric, products)
        found = []
        for right_bits in RIGHT_BITS:
            right = fitted(squares, products, right_bits)
            right = seen_in(self._metric, right + _noise(right, right_bits, np.float32))
            lost = self._total + (right * (squares @ right - 2 * seen)).sum()
            found.append(float((lost / self._total - self._cut) / (1 - self._cut)))
        return found


class _Trial:
    """A trial at one rank that predicts the error of the whole table from the sketch of some rows.

    Matrices over the components are stacks of diagonal blocks: one of r×r if there are enough rows for a
    joint fit, otherwise r of 1×1, one per component, since a joint fit would overfit the sample.

    Args:
        stats: the table.
        rank: components kept.
        shared: None for a thorough trial; for quick ones, the fraction of a right factor's squares that
            rounding loses, by bits, which the first of them fills in.
    """

    def __init__(self, stats: TableStats, rank: int, shared: dict[int, float] | None) -> None:
        sample, eigenvalues, self._rank = stats.sample, stats.spectrum.eigenvalues, rank
        values = _VALUES if shared is None else _ROUGH_VALUES
        every = -(-len(sample.rows) // max(_LEAST_ROWS, values // rank))
        rows, weights = sample.rows[::every], sample.weights[::every]
        self._joint = len(rows) >= _ENOUGH * rank
        basis, self._rotation = (factor.astype(np.float32) for factor in sketch(stats, rank))
        self._sketch = rows @ basis
        self._roots = np.sqrt(weights)[:, None].astype(np.float32)
        self._clean = self._unrotated(self._sketch * self._roots)
        self._eigenvalues = eigenvalues[:rank, None, None]
        self._kept, self._tail = eigenvalues[:rank].sum(), eigenvalues[rank:].sum()
        sums = np.square(self._clean, dtype=np.float64).sum()
        self._unit = self._kept / sums if sums > 0 else 0.0
        self._rough = {} if shared is None else shared
        if not self._rough:
            right = (self._rotation.T[:_RIGHT_ROWS] @ stats.synthesis[:rank]).astype(np.float32)
            self._rough.update({bits: _rounded(right, bits, stats.metric) for bits in RIGHT_BITS})
        # A fit to V rows leaves less error on them than a fit to infinitely many rows.
        energies = stats.energies[sample.places]
        counts = sample.weights if stats.weights is None else sample.weights / stats.weights[sample.places]
        self._left, self._left_here = _left_over(energies, counts, rank), 1.0
        if self._joint:
            own = (energies * counts)[::every]
            self._left_here = _left_over(own, np.ones(len(own)), rank)

    def shares(self, bits: int) -> list[float]:
        """Predict what ``_Whole`` measures.

        Let X = E V_r Q, and L = X + N the rounded left rows. The fit approximates X by L (A + μI)⁻¹ LᵀX for
        A = LᵀL. Its error is L M - N with M = (A + μI)⁻¹ (LᵀN + μI), and R is (I - M) Sᵀ.
        """
        noise = self._unrotated(_noise(self._sketch, bits) * self._roots)
        own, mixed = (self._products(x, noise) * self._unit for x in (noise, self._clean))
        if self._joint:
            squares = self._products(self._clean + noise, self._clean + noise) * self._unit
        else:
            squares = np.maximum(self._eigenvalues + 2 * mixed + own, 0)
        cross, energy, one = own + mixed, _trace(squares), np.eye(squares.shape[-1])
        if energy == 0:
            return [0.0 for _ in RIGHT_BITS]
        found = []
        for right_bits in RIGHT_BITS:
            price = LOSSES[right_bits] * energy / self._rank * one
            off = np.linalg.solve(squares + price, cross + price)
            missed = float((off * (squares @ off - 2 * cross)).sum()) + _trace(own)
            idle = 1 - energy / self._kept * (1 - _trace(off) / self._rank)
            idle = min(1.0, max(0.0, idle))
            missed *= _left_of(idle, self._left) / _left_of(idle, self._left_here)
            rounded = self._rough[right_bits] * np.square(one - off).sum() * energy / self._rank
            # The noise in L also fits some of what is cut off.
            gained = (1 - self._left) * idle * self._tail
            found.append(float(missed + rounded - gained) / self._kept)
        return found

    def _unrotated(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rotate rows back to the components if these are fitted one by one."""
        return rows if self._joint else rows @ self._rotation.T

    def _products(self, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
        blocks = (left.T @ right)[None] if self._joint else np.vecdot(left.T, right.T)[:, None, None]
        products: NDArray[np.float64] = blocks.astype(np.float64)
        return products


def _noise(rows: NDArray[Any], bits: int, scale_type: DTypeLike = np.float16) -> NDArray[Any]:
    """The change of rows by rounding."""
    found = quantize(rows, bits, scale_type)
    noise: NDArray[Any] = dequantize(found.codes, found.scales, bits) - rows
    return noise


def _rounded(rows: NDArray[Any], bits: int, metric: Metric | None) -> float:
    """Fraction of the squares of rows, in the metric, that rounding loses."""
    lost, whole = (seen_in(metric, each) for each in (_noise(rows, bits, np.float32), rows))
    return float(np.square(lost).sum() / np.square(whole).sum())


def _trace(blocks: NDArray[Any]) -> float:
    return float(np.trace(blocks, axis1=1, axis2=2).sum())


def _left_of(noise: float, left: float) -> float:
    """Fraction of the error of predicting X from L = X + N that remains on the V rows of the fit.

    If L is pure noise, this is ``left``. Otherwise it is more, since noise that resembles X by chance makes
    L M in ``_Trial.shares`` worse by more than its absence makes it better. To first order in s, for
    orthonormal rows: E tr((I + εG)(I + εG)ᵀ)⁻¹ = r/(1 - ε²) for Gaussian noise εG/√r.

    Args:
        noise: s, the fraction of L that is noise.
        left: fraction of pure noise that the fit leaves.
    """
    return left / (1 - 2 * (1 - left) * noise * (1 - noise))


def _left_over(energies: NDArray[np.float64], counts: NDArray[np.float64], rank: int) -> float:
    """Fraction of pure noise that a least-squares fit on r columns leaves, at least a twentieth.

    A row whose energy is e_i in the left factor and in the noise has a leverage of about τe_i/(1 + τe_i): the
    fit removes that fraction of its noise. τ is such that the leverages add up to r. Equal rows leave 1 -
    r/V.

    Args:
        energies: e_i of some rows.
        counts: how many rows of the table each of them represents.
        rank: r.
    """
    total = counts @ energies
    if total == 0:
        return 1.0
    low, high = 0.0, 60.0  # bounds of log₂(τ · total)
    while high - low > 1e-6:
        middle = (low + high) / 2
        scaled = energies * (2**middle / total)
        low, high = (middle, high) if counts @ (scaled / (1 + scaled)) < rank else (low, middle)
    return max(0.05, float(counts @ (energies / (1 + energies * (2**high / total))) / total))
