"""Accuracy, precision, recall and F1 from a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelScore:
    """Precision, recall and F1 of one label, from 0 to 1, and the number of texts with it.

    A ratio with denominator 0 (no text predicted, or none true) counts as 0, as in scikit-learn.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        labels: names of the C labels.
        counts: C×C counts; rows are true labels, columns are predicted ones.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: tuple[str, ...], true: NDArray[np.int64], predicted: NDArray[np.int64]) -> Confusion:
        """Count pairs of true and predicted label numbers."""
        size = len(labels)
        counts = np.bincount(true * size + predicted, minlength=size * size)
        return cls(labels, counts.reshape(size, size))

    @property
    def accuracy(self) -> float:
        """Fraction of texts whose label is predicted."""
        return float(self.counts.trace() / self.counts.sum())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels that are true or predicted at least once."""
        seen = [s.f1 for s, n in zip(self.scores, self.counts.sum(0) + self.counts.sum(1), strict=True) if n]
        return float(np.mean(seen))

    @property
    def scores(self) -> tuple[LabelScore, ...]:
        """The scores of each label."""
        hits, predicted, true = self.counts.diagonal(), self.counts.sum(axis=0), self.counts.sum(axis=1)
        return tuple(
            LabelScore(
                label,
                precision=float(hits[i] / predicted[i]) if predicted[i] else 0.0,
                recall=float(hits[i] / true[i]) if true[i] else 0.0,
                f1=float(2 * hits[i] / (predicted[i] + true[i])) if predicted[i] + true[i] else 0.0,
                support=int(true[i]),
            )
            for i, label in enumerate(self.labels)
        )
