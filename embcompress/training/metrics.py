"""Accuracy, precision, recall and F1 from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelScore:
    """How well one label is told from the others, each between 0 and 1.

    A share of nothing (no text predicted, none true) counts as 0, as in scikit-learn.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """Counts of (true label, predicted label).

    Attributes:
        labels: names, C of them.
        counts: C×C, rows are true labels.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: tuple[str, ...], true: NDArray[np.int64], predicted: NDArray[np.int64]) -> Confusion:
        """Count pairs of label numbers."""
        size = len(labels)
        counts = np.bincount(true * size + predicted, minlength=size * size)
        return cls(labels, counts.reshape(size, size))

    @property
    def accuracy(self) -> float:
        """Share of texts whose label is predicted."""
        return float(self.counts.trace() / self.counts.sum())

    @property
    def macro_f1(self) -> float:
        """Mean of the labels' F1, over labels that are true or predicted at least once."""
        seen = [s.f1 for s, n in zip(self.scores, self.counts.sum(0) + self.counts.sum(1), strict=True) if n]
        return float(np.mean(seen))

    @property
    def scores(self) -> tuple[LabelScore, ...]:
        """One entry a label."""
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
