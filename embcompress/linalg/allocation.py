"""Bit allocation: how many bits each component of a row gets, and which rows get more than others.

For Gaussian components the optimal allocation is reverse water-filling (Cover & Thomas 2006, theorem 10.3.3).
A quantizer with only a few rates calls for greedy allocation by marginal gain (Fox 1966, "Discrete
optimization via marginal analysis"), which is optimal if each further bit gains less than the one before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATES = np.array([0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8])
"""Bits a component may get."""

_GAPS = np.array([0, 0.20, 0.45, 1.00, 1.40, 1.65, 1.80, 1.85, 1.90, 1.90])
"""Distance in dB of the trellis code of 256 states from the rate–distortion bound at each rate, measured on
Gaussian samples."""

DISTORTIONS = 2.0 ** (-2 * RATES) * 10 ** (_GAPS / 10)
"""Fraction of a component's variance that remains as distortion at each of ``RATES``."""


def allocate(variances: NDArray[np.float64], bits: float, *, pairs: bool = True) -> NDArray[np.float64]:
    """Choose the rate of each component so that the total distortion is least.

    Args:
        variances: variances of the components (r), none negative.
        bits: most bits of all components together.
        pairs: whether components may get half a bit; their number is then even.
    """
    kept = [i for i, rate in enumerate(RATES) if pairs or rate != 0.5]
    rates, distortions = RATES[kept], DISTORTIONS[kept]
    costs = np.diff(rates)
    gains = variances[:, None] * -np.diff(distortions) / costs
    order = np.argsort(-gains, axis=None, kind="stable")
    spent = np.cumsum(np.broadcast_to(costs, gains.shape).ravel()[order])
    taken = order[: np.searchsorted(spent, bits + 1e-9, side="right")]
    found = rates[np.bincount(taken // len(costs), minlength=len(variances))]
    halves = np.flatnonzero(found == 0.5)
    if len(halves) % 2:
        found[halves[np.argmin(variances[halves])]] = 0
    return found


def distortion(variances: NDArray[np.float64], rates: NDArray[np.float64]) -> float:
    """Total distortion of all components at these rates."""
    return float(variances @ DISTORTIONS[np.searchsorted(RATES, rates)])


def split_bits(variances: NDArray[np.float64], counts: NDArray[np.int64], bits: float) -> NDArray[np.float64]:
    """Bits per row of each class that give the least total distortion of all rows.

    Args:
        variances: variances of the components in each class, summed over its rows (c×r).
        counts: rows in each class (c).
        bits: most bits of all rows together.
    """
    costs = np.diff(RATES)
    slopes = -np.diff(DISTORTIONS) / costs
    gains = (variances / counts[:, None])[:, :, None] * slopes
    prices = np.broadcast_to(costs * counts[:, None, None], gains.shape).ravel()
    order = np.argsort(-gains, axis=None, kind="stable")
    taken = order[: np.searchsorted(np.cumsum(prices[order]), bits, side="right")]
    each = prices / np.repeat(counts, gains[0].size)
    bits_of = np.bincount(taken // gains[0].size, each[taken], minlength=len(counts))
    return bits_of.astype(np.float64)


def hot_rows(energies: NDArray[np.float64]) -> tuple[int, float]:
    """Choose how many of the rows with the most energy should get more bits than the others.

    At high rates the distortion of a class of n_c rows is proportional to its mean energy, and the least
    distortion of both classes to Π (mean energy of c)^(n_c / n). All counts are tried to minimize that.

    Args:
        energies: weighted squares of each row (n), none negative.

    Returns:
        The count, and the distortion as a fraction (0 to 1) of that of a single class; (0, 1.0) if a second
        class gains nothing.
    """
    # Energies that are negligible next to the largest are dropped, zeros among them.
    descending = np.sort(energies[energies > 1e-30 * energies.max(initial=0.0)])[::-1]
    count = len(descending)
    if count < 2:
        return 0, 1.0
    sums, first = np.cumsum(descending), np.arange(1, count)
    shares = first / count
    rest = np.cumsum(descending[::-1])[::-1][1:]  # smallest first, or their sum would be lost to rounding
    logs = shares * np.log(sums[:-1] / first) + (1 - shares) * np.log(rest / (count - first))
    best = int(np.argmin(logs))
    return int(first[best]), float(np.exp(min(0.0, logs[best] - np.log(sums[-1] / count))))
