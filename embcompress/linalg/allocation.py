"""Bit allocation: how many bits each component of a row gets, and which rows get more than others.

For Gaussian components the optimal allocation is reverse water-filling (Cover & Thomas 2006, theorem 10.3.3).
A quantizer with only a few rates calls for greedy allocation by marginal gain (Fox 1966, "Discrete
optimization via marginal analysis"), which is optimal if each further bit gains less than the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATES = np.array([0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8])
"""Bits a component may get."""

_GAPS = np.array([0, 0.20, 0.45, 1.00, 1.40, 1.65, 1.80, 1.85, 1.90, 1.90])
"""Distance in dB of the trellis code of 256 states from the rate–distortion bound at each rate, measured on
Gaussian samples."""

DISTORTIONS = 2.0 ** (-2 * RATES) * 10 ** (_GAPS / 10)
"""Fraction of a component's variance that remains as distortion at each of ``RATES``."""

_PLACES = 100
"""Places for cuts at equal steps, and as many that are close to each end."""


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


@dataclass(frozen=True)
class Division:
    """Rows in order of energy, cut into classes.

    Attributes:
        sizes: rows of each class (c), those with the least energy first.
        left: the distortion as a fraction (0 to 1) of that of a single class, at high rates.
    """

    sizes: NDArray[np.intp]
    left: float

    def classes_of(self, ascending: NDArray[np.intp]) -> NDArray[np.uint8]:
        """The class of each row (n), from the rows in order of energy; equal rows may be in two."""
        classes = np.empty(len(ascending), np.uint8)
        classes[ascending] = np.repeat(np.arange(len(self.sizes), dtype=np.uint8), self.sizes)
        return classes


def divisions(energies: NDArray[np.float64], most: int, least: int = 1) -> list[Division]:
    """Divide rows into 1, 2, … ``most`` classes, so that those with more energy can get more bits.

    At high rates the distortion of a class of n_c rows is proportional to its mean energy, and the least
    distortion of all classes to Π (mean energy of c)^(n_c / n). Its logarithm is a sum over classes, so the
    best cuts are found by dynamic programming (Fisher 1958, "On grouping for maximum homogeneity"). In a
    large table, only some hundred places are tried.

    Args:
        energies: weighted squares of each row (n), none negative.
        most: most classes.
        least: fewest rows in each of several classes.

    Returns:
        The best division into each number of classes, as far as there are enough rows.
    """
    # Energies that are negligible next to the largest do not count, zeros among them.
    ascending = np.sort(energies[energies > 1e-30 * energies.max(initial=0.0)])
    count = len(ascending)
    if count == 0:
        return [Division(np.array([len(energies)]), 1.0)]
    places = np.arange(count + 1)
    if count > 4 * _PLACES:
        apart = np.concatenate([np.linspace(0, count, _PLACES), np.geomspace(1, count + 1, _PLACES) - 1])
        places = np.unique(np.concatenate([apart, count - apart]).round().astype(np.intp))
    sums, sizes = np.append(0.0, np.cumsum(ascending))[places], places - places[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = sizes * np.log((sums - sums[:, None]) / sizes)
    costs = np.where(sizes >= least, logs, np.inf)
    found: list[Division] = []
    before: list[NDArray[np.intp]] = []
    best = logs[0]
    while len(found) < most and best[-1] < np.inf:
        place, ends = len(places) - 1, [count]
        for earlier in reversed(before):
            place = earlier[place]
            ends.append(places[place])
        parts = np.diff([0, *reversed(ends)])
        parts[0] += len(energies) - count
        found.append(Division(parts, float(np.exp(min(0.0, best[-1] - logs[0, -1]) / count))))
        totals = (best if before else costs[0])[:, None] + costs
        before.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    return found
