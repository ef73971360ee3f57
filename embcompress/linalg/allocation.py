"""How many bits each component of a row gets, and which rows get more than others.

For Gaussian components the distortion of a row is least when bits go where they take most away:
reverse water-filling (Cover & Thomas 2006, theorem 10.3.3). With a quantizer that knows only some
rates, the same is done greedily by marginal gain (Fox 1966, "Discrete optimization via marginal
analysis"), which is the optimum where each further bit gains less than the one before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATES = np.array([0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8])
"""Bits a component may get."""

_GAPS = np.array([0, 0.20, 0.45, 1.00, 1.40, 1.65, 1.80, 1.85, 1.90, 1.90])
"""How far above the rate–distortion bound the trellis code of 256 states stays at each rate, in dB,
measured on Gaussian samples."""

DISTORTIONS = 2.0 ** (-2 * RATES) * 10 ** (_GAPS / 10)
"""What is left of a component's variance at each of ``RATES``."""


def allocate(variances: NDArray[np.float64], bits: float, *, pairs: bool = True) -> NDArray[np.float64]:
    """The rate of each component, together at most ``bits``, that leaves the least distortion.

    Args:
        variances: of the components (r), none negative.
        bits: to give away.
        pairs: whether half a bit may be given, always to an even number of components.
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
    """Variance left of all components together at these rates."""
    return float(variances @ DISTORTIONS[np.searchsorted(RATES, rates)])


def split_bits(variances: NDArray[np.float64], counts: NDArray[np.int64], bits: float) -> NDArray[np.float64]:
    """Bits a row of each class, so that the distortion of all rows together is least.

    Args:
        variances: of the components of each class's rows, summed over the rows (c×r).
        counts: rows of each class (c).
        bits: of all rows together.
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
    """How many of the rows with the most energy should get more bits than the others, and what it gains.

    At a high rate the distortion of a class of n_c rows is proportional to its mean energy, and the
    least that both together can have to Π (mean energy of c)^(n_c / n): the count that minimizes that
    is found by trying every one.

    Args:
        energies: weighted squares of each row (n), none negative.

    Returns:
        The count, and what is left of the distortion of one class for all, 0 to 1; (0, 1.0) where a
        second class gains nothing.
    """
    # What is nothing beside the largest has no say, and its logarithm none either.
    descending = np.sort(energies[energies > 1e-30 * energies.max(initial=0.0)])[::-1]
    count = len(descending)
    if count < 2:
        return 0, 1.0
    sums, first = np.cumsum(descending), np.arange(1, count)
    shares = first / count
    rest = np.cumsum(descending[::-1])[::-1][1:]  # from the smallest on, which would drown in the others
    logs = shares * np.log(sums[:-1] / first) + (1 - shares) * np.log(rest / (count - first))
    best = int(np.argmin(logs))
    return int(first[best]), float(np.exp(min(0.0, logs[best] - np.log(sums[-1] / count))))
