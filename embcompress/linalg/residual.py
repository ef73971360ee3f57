"""The distance between a table and what stands for it, in one streamed pass over both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Residual:
    """Squared Frobenius norms, summed in float64.

    Attributes:
        difference: of the difference.
        table: of the table.
    """

    difference: float
    table: float

    @property
    def relative(self) -> float:
        """Relative Frobenius error; 0 where both are zero, infinite where only the table is."""
        if self.table == 0:
            return 0.0 if self.difference == 0 else float("inf")
        return float(np.sqrt(self.difference / self.table))


@dataclass(frozen=True)
class Residuals:
    """The distance with all rows alike, and with each row's squares times its weight.

    Attributes:
        plain: all rows alike.
        weighted: the same as ``plain`` where there are no weights.
    """

    plain: Residual
    weighted: Residual


def residual(
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]], weights: NDArray[np.float64] | None = None
) -> Residuals:
    """Compare block by block.

    Args:
        pairs: (rows of the table, what stands for them minus these rows), equal shapes.
        weights: of each row of the table (V), none negative; None for all alike.
    """
    sums = np.zeros((2, 2))  # (plain, weighted) × (difference, table)
    seen = 0
    for rows, differences in pairs:
        squares = np.stack([row_squares(differences), row_squares(rows)], axis=1)
        sums[0] += squares.sum(axis=0)
        if weights is not None:
            sums[1] += weights[seen : seen + len(rows)] @ squares
        seen += len(rows)
    plain = Residual(*sums[0].tolist())
    return Residuals(plain, plain if weights is None else Residual(*sums[1].tolist()))


def row_squares(block: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of squares of each row, summed in the block's type.

    A row is short, so float32 keeps its digits; where its range does not hold the squares, all
    is done in float64.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares: NDArray[np.float64] = np.vecdot(block, block).astype(np.float64)
        if not 1e-24 < squares.sum() < 1e34:
            wide = block.astype(np.float64)
            squares = np.vecdot(wide, wide)
    return squares
