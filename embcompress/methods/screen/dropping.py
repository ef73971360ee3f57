"""Ranks the rows of a table by how little is lost if they share one row, and computes that loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.methods.stats import TableStats
from embcompress.rows import Rows

_BUCKETS = 1024
"""Positions in the ranking for which sums are kept; sums in between need a few rows to be read again."""

_GAP = 64
"""Most unwanted rows between two wanted ones that are read along, to avoid a second read."""

_MANY_ZEROS = 8
"""If more than 1/8 of the rows are zeros, it costs too much to keep all of them."""


@dataclass(frozen=True)
class Dropped:
    """Which rows are dropped, and the row that replaces all of them.

    Attributes:
        kept: whether each row is kept (V).
        shared: the row that replaces the dropped ones (d): their weighted mean, or zeros if zero rows are
            among them.
        weight: sum of the weights of the dropped rows.
        loss: Σ w_i ‖E_i − shared‖² over the dropped rows, in the metric of the table's statistics.
    """

    kept: NDArray[np.bool_] = field(repr=False)
    shared: NDArray[np.float64] = field(repr=False)
    weight: float
    loss: float


@dataclass(frozen=True)
class Ranking:
    """The order in which the rows of a table are dropped, with sums that give the loss of any number of them.

    Attributes:
        stats: the table.
        order: indices of the nonzero rows, in the order they are dropped (N).
        centre: a point near the rows that are dropped first, which is subtracted in all sums (d).
        edges: positions in ``order`` up to which sums are kept, from 0 to N (K+1).
        sums: Σ w_i (E_i − centre) over the order up to each edge (K+1×d).
        losses: Σ w_i ‖E_i − centre‖² over the order up to each position (N+1).
        to_zero: the rows of ``order``, in the order they are dropped if zeros replace them (N).
    """

    stats: TableStats
    order: NDArray[np.intp] = field(repr=False)
    centre: NDArray[np.float64] = field(repr=False)
    edges: NDArray[np.intp] = field(repr=False)
    sums: NDArray[np.float64] = field(repr=False)
    losses: NDArray[np.float64] = field(repr=False)
    to_zero: NDArray[np.intp] = field(repr=False)

    def drop(self, keep: int) -> Dropped:
        """Choose at most ``keep`` rows (0 … V) to keep, with the least loss; more rows never lose more.

        Zero rows must stay zeros: either they are kept, or, if there are many of them or more than ``keep``,
        they are dropped and the shared row is zeros.
        """
        rows, nonzero = self.stats.rows.shape[0], len(self.order)
        zeros = rows - nonzero
        found = []
        if zeros:
            # Few zero rows are dropped only if fewer rows than those may be kept, or if that loses less.
            most = rows if _MANY_ZEROS * zeros > rows else zeros - 1
            found.append(self._for_zeros(max(0, nonzero - min(keep, most))))
        if keep >= zeros:
            found.append(self._for_mean(rows - keep))
        return min(found, key=lambda one: one.loss)

    def _for_zeros(self, count: int) -> Dropped:
        weights, kept = self.stats.weights_of(), self.stats.energies > 0
        kept[self.to_zero[:count]] = False
        loss = self.stats.energies[self.to_zero[:count]].sum()
        return Dropped(kept, np.zeros(len(self.centre)), float(weights[~kept].sum()), float(loss))

    def _for_mean(self, count: int) -> Dropped:
        """Use that squares about the mean are those about the centre minus weight · distance²."""
        weights = self.stats.weights_of()
        kept = np.ones(len(weights), bool)
        kept[self.order[:count]] = False
        weight = float(weights[~kept].sum())
        edge = int(np.searchsorted(self.edges, count, "right")) - 1
        total = self.sums[edge].copy()
        rest = np.sort(self.order[self.edges[edge] : count])
        if rest.size:
            total += weights[rest] @ (picked(self.stats.rows, rest).astype(np.float64) - self.centre)
        if not count:
            return Dropped(kept, np.zeros_like(total), 0.0, 0.0)
        loss = max(0.0, float(self.losses[count] - self.stats.squares(total[None])[0] / weight))
        return Dropped(kept, self.centre + total / weight, weight, loss)


def ranking(stats: TableStats) -> Ranking:
    """Rank the rows of a table: the least weight first, and of equal weights the nearest to the shared row.

    The shared row is taken to be the mean of all rows that weigh no more. Without weights only the distance
    counts: rows near the mean are dropped first. Takes three passes over the table.
    """
    weights = stats.weights_of()
    nonzero = np.flatnonzero(stats.energies > 0)
    order = nonzero[np.argsort(weights[nonzero], kind="stable")]
    edges = np.linspace(0, len(order), min(_BUCKETS, len(order)) + 1).astype(np.intp)
    origin = np.zeros(stats.rows.shape[1])
    sums, _ = _sums(stats, order, edges, origin)
    means = sums[1:] / np.maximum(np.append(0.0, np.cumsum(weights[order]))[edges[1:], None], 1e-300)
    # The bucket that holds the last row of the same weight: all rows before that weigh no more.
    ends = np.searchsorted(weights[order], weights[order], "right")
    bucket = np.zeros(len(weights), np.intp)
    bucket[order] = np.searchsorted(edges[1:], ends)
    distances = np.zeros(len(weights))
    if len(order):
        for start, stop in stats.rows.spans():
            distances[start:stop] = stats.squares(stats.rows.read(start, stop) - means[bucket[start:stop]])
    order = nonzero[np.lexsort((distances[nonzero], weights[nonzero]))]
    to_zero = nonzero[np.lexsort((stats.energies[nonzero], weights[nonzero]))]
    centre = means[bucket[order[0]]] if len(order) else origin
    sums, squares = _sums(stats, order, edges, centre)
    losses = np.append(0.0, np.cumsum(weights[order] * squares[order]))
    return Ranking(stats, order, centre, edges, sums, losses, to_zero)


def picked(rows: Rows, places: NDArray[np.intp]) -> NDArray[Any]:
    """Read some rows of a matrix (ascending indices) in spans that skip wide gaps."""
    blocks = [np.empty((0, rows.shape[1]), np.float32)]
    cuts = np.flatnonzero(np.diff(places) > _GAP) + 1
    for near in np.split(places, cuts) if places.size else ():
        while near.size:
            fitting = int(np.searchsorted(near, near[0] + rows.block_rows))
            now, near = near[:fitting], near[fitting:]
            blocks.append(rows.read(int(now[0]), int(now[-1]) + 1)[now - now[0]])
    return np.concatenate(blocks[1:] or blocks)


def _sums(
    stats: TableStats, order: NDArray[np.intp], edges: NDArray[np.intp], centre: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ w_i (E_i − centre) over the order up to each edge (K+1×d), and ‖E_i − centre‖² of each row (V)."""
    weights = stats.weights_of()
    squares, sums = np.zeros(len(weights)), np.zeros((len(edges), len(centre)))
    bucket = np.full(len(weights), -1)
    bucket[order] = np.searchsorted(edges, np.arange(len(order)), "right")
    for start, stop in stats.rows.spans():
        of = bucket[start:stop]
        shifted = stats.rows.read(start, stop) - centre
        squares[start:stop] = stats.squares(shifted)
        sorted_rows = np.argsort(of, kind="stable")[int((of < 0).sum()) :]
        if sorted_rows.size:
            shifted *= weights[start:stop, None]
            firsts = np.flatnonzero(np.diff(of[sorted_rows], prepend=-1))
            sums[of[sorted_rows[firsts]]] += np.add.reduceat(shifted[sorted_rows], firsts)
    return np.cumsum(sums, axis=0), squares
