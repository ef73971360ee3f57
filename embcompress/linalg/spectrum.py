"""The spectrum of a table: the eigenvalues of its Gram matrix, and the errors they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of a Gram matrix EᵀE.

    Attributes:
        eigenvalues: min(V, d) squared singular values of E, descending, none negative.
        vectors: d×min(V, d), right singular vectors of E in the same order, orthonormal columns.
    """

    eigenvalues: NDArray[np.float64]
    vectors: NDArray[np.float64]

    @property
    def total(self) -> float:
        """Squared Frobenius norm of the table."""
        return float(self.eigenvalues.sum())

    @property
    def limit(self) -> int:
        """Largest possible rank, min(V, d)."""
        return len(self.eigenvalues)

    def relative_errors(self) -> NDArray[np.float64]:
        """Relative Frobenius error of the best approximation of each rank 0 … min(V, d).

        Its square is the fraction of the eigenvalues that is left out (Eckart & Young 1936). For a table of
        zeros all errors are 0.
        """
        # Summed from the smallest: the tail of a steep spectrum would be lost in the rounding of the head.
        tails = np.append(np.cumsum(self.eigenvalues[::-1])[::-1], 0.0)
        return np.sqrt(tails / self.total) if self.total > 0 else np.zeros(self.limit + 1)

    def rank_for_error(self, error: float) -> int:
        """Smallest rank (at least 1) whose relative error is at most ``error``."""
        return max(1, int(np.argmax(self.relative_errors() <= error)))

    def rank_for_energy(self, energy: float) -> int:
        """Smallest rank (at least 1) that keeps the fraction ``energy`` of the squared singular values."""
        kept = np.append(0.0, np.cumsum(self.eigenvalues))
        # Not ``total``, which may round to more than all partial sums: energy=1 would find no rank.
        return max(1, int(np.argmax(kept >= energy * kept[-1])))

    def gaussian_bound(self, bits: float) -> float:
        """Least relative error of any code with ``bits`` bits per row, for Gaussian rows.

        Reverse water-filling (Cover & Thomas 2006, theorem 10.3.3): component j gets max(0, ½·log2(λ_j/θ))
        bits, and min(λ_j, θ) of its variance remains. Row weights enter only through the spectrum: a code
        that spends more bits on rows of more weight can do better.
        """
        present = self.eigenvalues[self.eigenvalues > 0]
        if not present.size:
            return 0.0
        # With the k largest above the water, log2 θ = (Σ log2 λ - 2·bits) / k; the largest consistent k.
        logs, counts = np.log2(present), np.arange(1, len(present) + 1)
        levels = (np.cumsum(logs) - 2 * bits) / counts
        active = int(np.flatnonzero(levels <= logs)[-1])
        left = 2 ** levels[active] * (active + 1) + present[active + 1 :].sum()
        return float(np.sqrt(min(1.0, left / self.total)))

    @property
    def effective_rank(self) -> float:
        """Number of directions that the table effectively uses, 0 … min(V, d).

        It is the exponential of the entropy of the normalized singular values (Roy & Vetterli 2007,
        "The effective rank", definition 1).
        """
        singular = np.sqrt(self.eigenvalues)
        if singular.sum() == 0:
            return 0.0
        share = singular[singular > 0] / singular.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


_SEPARATE = 1e-10
"""Eigenvalues below this fraction of the largest are computed from what the larger ones leave."""


def spectrum(gram: NDArray[np.float64], rows: int) -> Spectrum:
    """Compute the spectrum of a table of ``rows`` rows from its d×d Gram matrix.

    The sign of each vector is fixed by making its largest entry positive, so that the same table gives the
    same bytes whatever signs the solver returns.
    """
    return _ordered(*np.linalg.eigh(gram), rows)


def refined(gram: NDArray[np.float64], rows: int, blocks: Callable[[], Iterable[NDArray[Any]]]) -> Spectrum:
    """Compute a spectrum whose small eigenvalues are as exact as the large ones.

    A Gram matrix in float64 has errors of about 1e-16 of its largest eigenvalue, and eigenvalues are exact to
    that (Higham 2002, equation 3.13; Weyl's inequality, Golub & Van Loan 2013, theorem 8.1.6). So it shows
    nothing of singular values below 1e-8 of the largest. Where some may be that small, the rows are read once
    more, and what the large components leave of them is measured by itself (deflation, Parlett 1998, section
    5.1). It is exact to 1e-16 of the rows, so small singular values are, too.

    Args:
        gram: of the rows, in float64.
        rows: number of rows of the table, V.
        blocks: yields the blocks that ``gram`` was computed from.
    """
    values, vectors = np.linalg.eigh(gram)
    small = int(np.searchsorted(values, _SEPARATE * values[-1]))
    if small <= max(0, len(gram) - rows) or values[-1] <= 0:
        return _ordered(values, vectors, rows)
    others, large = vectors[:, :small], vectors[:, small:]
    inner = np.zeros((small, small))
    for block in blocks():
        left = block.astype(np.float64, copy=False)
        for _ in range(2):  # the second time takes away what rounding left (Giraud et al. 2005)
            left = left - (left @ large) @ large.T
        coefficients = left @ others
        inner += coefficients.T @ coefficients
    found, turns = np.linalg.eigh(inner)
    values = np.concatenate([found, values[small:]])
    return _ordered(values, np.concatenate([others @ turns, large], axis=1), rows)


def _ordered(values: NDArray[np.float64], vectors: NDArray[np.float64], rows: int) -> Spectrum:
    """The spectrum with these eigenvalues, ascending, and vectors."""
    limit = min(rows, len(values))
    values, vectors = values[::-1][:limit], vectors[:, ::-1][:, :limit]
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(limit)]
    return Spectrum(np.maximum(values, 0.0), vectors * np.where(peaks < 0, -1.0, 1.0))
