"""A metric over the columns of a table: which directions of a row's error count, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A quadratic form M = A², in which the squared error of a row e is e M eᵀ.

    Attributes:
        root: A, symmetric and positive definite (d×d).
        inverse: its inverse (d×d).
    """

    root: NDArray[np.float64]
    inverse: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: NDArray[np.float64], share: float) -> Metric:
        """The metric (1 − s)·I + s·M·d/tr M, in which the directions of a row count 1 on average.

        Args:
            matrix: M, symmetric and positive semidefinite (d×d), not zero.
            share: s, 0 up to but not including 1. What is left keeps directions that M lacks from being lost.
        """
        values, vectors = np.linalg.eigh(matrix)
        values = np.maximum(values, 0.0)
        roots = np.sqrt(1 - share + share * values / values.mean())
        return cls((vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T)

    def seen(self, rows: NDArray[Any]) -> NDArray[Any]:
        """E A: rows (n×d) whose plain squares are those of ``rows`` in the metric.

        They have the type of ``rows``, or float64 if it cannot hold them.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            found: NDArray[Any] = rows @ self.root.astype(rows.dtype)
            return found if np.isfinite(found).all() else rows.astype(np.float64) @ self.root


def seen_in(metric: Metric | None, rows: NDArray[Any]) -> NDArray[Any]:
    """The rows as ``metric`` sees them; as they are where there is none."""
    return rows if metric is None else metric.seen(rows)
