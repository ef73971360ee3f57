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


def residual(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Residual:
    """Compare block by block.

    Args:
        pairs: (rows of the table, what stands for them minus these rows), equal shapes.
    """
    difference = table = 0.0
    for rows, differences in pairs:
        difference += _squares(differences)
        table += _squares(rows)
    return Residual(difference, table)


def _squares(block: NDArray[Any]) -> float:
    """Sum of squares: row sums in the block's type, added up in float64.

    A row is short, so float32 keeps its digits; where its range does not hold the squares, all
    is done in float64.
    """
    with np.errstate(over="ignore", under="ignore"):
        total = float(np.vecdot(block, block).sum(dtype=np.float64))
    if 1e-24 < total < 1e34:
        return total
    wide = block.astype(np.float64)
    return float(np.vecdot(wide, wide).sum())
