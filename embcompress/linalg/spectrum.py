"""The spectrum of a table: the eigenvalues of its Gram matrix, and the errors they predict."""

from __future__ import annotations

from dataclasses import dataclass

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


def spectrum(gram: NDArray[np.float64], rows: int) -> Spectrum:
    """Compute the spectrum of a table of ``rows`` rows from its d×d Gram matrix.

    The sign of each vector is fixed by making its largest entry positive, so that the same table gives the
    same bytes whatever signs the solver returns.
    """
    values, vectors = np.linalg.eigh(gram)
    limit = min(rows, len(gram))
    values, vectors = values[::-1][:limit], vectors[:, ::-1][:, :limit]
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(limit)]
    return Spectrum(np.maximum(values, 0.0), vectors * np.where(peaks < 0, -1.0, 1.0))
