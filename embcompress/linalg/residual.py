"""The error of an approximation of a table, computed in one pass over both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.linalg.metric import Metric


@dataclass(frozen=True)
class Residual:
    """Squared Frobenius norms, summed in float64.

    Attributes:
        difference: squared norm of the difference between approximation and table.
        table: squared norm of the table.
    """

    difference: float
    table: float

    @property
    def relative(self) -> float:
        """Relative Frobenius error; 0 if both norms are 0, infinite if only that of the table is."""
        if self.table == 0:
            return 0.0 if self.difference == 0 else float("inf")
        return float(np.sqrt(self.difference / self.table))


@dataclass(frozen=True)
class Residuals:
    """The error by all that may be counted.

    Attributes:
        plain: all rows count alike.
        weighted: squares of each row times its weight; the same as ``plain`` if there are no weights.
        seen: weighted, in the metric; the same as ``weighted`` if there is none.
    """

    plain: Residual
    weighted: Residual
    seen: Residual


def residual(
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    weights: NDArray[np.float64] | None = None,
    metric: Metric | None = None,
) -> Residuals:
    """Compare a table and its approximation block by block.

    Args:
        pairs: (rows of the table, approximation minus these rows), of equal shapes.
        weights: weights of the rows (V), none negative; None if all count alike.
        metric: over the columns; None if all count alike.
    """
    sums = np.zeros((3, 2))  # (plain, weighted, seen) × (difference, table)
    count = 0
    for rows, differences in pairs:
        squares = _squares(rows, differences)
        seen = squares if metric is None else _squares(metric.seen(rows), metric.seen(differences))
        of = slice(count, count + len(rows))
        sums[0] += squares.sum(axis=0)
        sums[1] += squares.sum(axis=0) if weights is None else weights[of] @ squares
        sums[2] += seen.sum(axis=0) if weights is None else weights[of] @ seen
        count += len(rows)
    return Residuals(*(Residual(*each) for each in sums.tolist()))


def _squares(rows: NDArray[Any], differences: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack([row_squares(differences), row_squares(rows)], axis=1)


def row_squares(block: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of squares of each row, computed in the type of the block.

    Rows are short, so float32 is precise enough; if the squares exceed its range, float64 is used.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares: NDArray[np.float64] = np.vecdot(block, block).astype(np.float64)
        if not 1e-24 < squares.sum() < 1e34:
            wide = block.astype(np.float64)
            squares = np.vecdot(wide, wide)
    return squares
