"""The spectrum of a table: eigenvalues of its Gram matrix, and what they foretell."""

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
        """Largest rank there is, min(V, d)."""
        return len(self.eigenvalues)

    def relative_errors(self) -> NDArray[np.float64]:
        """Relative Frobenius error of the best approximation of each rank 0 … min(V, d).

        Eckart & Young 1936: its square is the share of the eigenvalues left out. An all-zero
        table is met exactly by any rank.
        """
        # Summed from the smallest on: the tail of a steep spectrum would drown in the head's rounding.
        tails = np.append(np.cumsum(self.eigenvalues[::-1])[::-1], 0.0)
        return np.sqrt(tails / self.total) if self.total > 0 else np.zeros(self.limit + 1)

    def rank_for_error(self, error: float) -> int:
        """Smallest rank (at least 1) whose relative error is at most ``error``."""
        return max(1, int(np.argmax(self.relative_errors() <= error)))

    def rank_for_energy(self, energy: float) -> int:
        """Smallest rank (at least 1) that keeps the share ``energy`` of the squared singular values."""
        kept = np.append(0.0, np.cumsum(self.eigenvalues))
        # The full sum may round below energy=1 of itself; compared with its own last value it cannot.
        return max(1, int(np.argmax(kept >= energy * kept[-1])))

    def gaussian_bound(self, bits: float) -> float:
        """Least relative error of any code of ``bits`` bits a row, were the rows Gaussian.

        Reverse water-filling (Cover & Thomas 2006, theorem 10.3.3): component j gets
        max(0, ½·log2(λ_j/θ)) bits, and min(λ_j, θ) of its variance is left. Row weights enter through
        the spectrum alone: a code that spends more bits on rows that weigh more can do better.
        """
        present = self.eigenvalues[self.eigenvalues > 0]
        if not present.size:
            return 0.0
        # With the k largest above the water, log2 θ = (Σ log2 λ - 2·bits) / k; the largest k that holds.
        logs, counts = np.log2(present), np.arange(1, len(present) + 1)
        levels = (np.cumsum(logs) - 2 * bits) / counts
        active = int(np.flatnonzero(levels <= logs)[-1])
        left = 2 ** levels[active] * (active + 1) + present[active + 1 :].sum()
        return float(np.sqrt(min(1.0, left / self.total)))

    @property
    def effective_rank(self) -> float:
        """How many directions the table uses, 0 … min(V, d).

        The exponential of the entropy of the normalized singular values (Roy & Vetterli 2007,
        "The effective rank", definition 1).
        """
        singular = np.sqrt(self.eigenvalues)
        if singular.sum() == 0:
            return 0.0
        share = singular[singular > 0] / singular.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


def spectrum(gram: NDArray[np.float64], rows: int) -> Spectrum:
    """The spectrum of a table of ``rows`` rows from its d×d Gram matrix.

    Signs of the vectors are settled (the largest entry of each is positive), so that the same
    table gives the same bytes whatever the solver does.
    """
    values, vectors = np.linalg.eigh(gram)
    limit = min(rows, len(gram))
    values, vectors = values[::-1][:limit], vectors[:, ::-1][:, :limit]
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(limit)]
    return Spectrum(np.maximum(values, 0.0), vectors * np.where(peaks < 0, -1.0, 1.0))
