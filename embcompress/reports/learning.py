"""What ``train``, ``finetune``, ``evaluate`` and ``compress`` return; JSON is their ``to_dict``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embcompress.reports.results import FactorizeResult
from embcompress.training.metrics import Confusion
from embcompress.training.records import Epoch


@dataclass(frozen=True)
class TrainingResult:
    """The result of :func:`embcompress.train` or :func:`embcompress.finetune`.

    Attributes:
        source: the checkpoint it started from, None for a new classifier.
        output: the classifier it wrote.
        classifier: name of its architecture.
        labels: its labels.
        tokens: rows of its table.
        pretrained: rows that were filled with pretrained vectors.
        train_texts: number of texts learned from.
        dev_texts: number of texts that chose the epoch.
        epochs: one entry per epoch, the first before training.
        best: number of the epoch that was kept.
        dev_accuracy: share of dev texts whose label the written classifier predicts.
        size: bytes of the written weight file.
        notes: what the user should know, one sentence each.
    """

    source: Path | None
    output: Path
    classifier: str
    labels: tuple[str, ...]
    tokens: int
    pretrained: int
    train_texts: int
    dev_texts: int
    epochs: tuple[Epoch, ...]
    best: int
    dev_accuracy: float
    size: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result with paths as text, ready for JSON."""
        return {
            **asdict(self),
            "epochs": [epoch.to_dict() for epoch in self.epochs],
            "source": None if self.source is None else str(self.source),
            "output": str(self.output),
        }


@dataclass(frozen=True)
class EvaluateResult:
    """The result of :func:`embcompress.evaluate`: how well a classifier does on labelled texts.

    Attributes:
        path: the classifier.
        texts: the CSV file.
        size: bytes of the classifier's weight files.
        confusion: counts of (true, predicted) labels; accuracy and F1 follow from it.
        notes: what the user should know, one sentence each.
    """

    path: Path
    texts: Path
    size: int
    confusion: Confusion
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Fraction of texts whose label is predicted."""
        return self.confusion.accuracy

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels."""
        return self.confusion.macro_f1

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON; rows of ``confusion`` are true labels."""
        return {
            "path": str(self.path),
            "texts": str(self.texts),
            "size": self.size,
            "count": int(self.confusion.counts.sum()),
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "labels": [asdict(score) for score in self.confusion.scores],
            "confusion": self.confusion.counts.tolist(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class CompressResult:
    """The result of :func:`embcompress.compress`: factorize, retrain, evaluate.

    Attributes:
        factorized: what factorizing did.
        tuned: what retraining did.
        before: the dense classifier on the test texts, or on the dev texts if there are none.
        without_training: the factorized classifier on the same texts.
        after: the written classifier on the same texts.
        notes: what the user should know, one sentence each.
    """

    factorized: FactorizeResult
    tuned: TrainingResult
    before: EvaluateResult
    without_training: EvaluateResult
    after: EvaluateResult
    notes: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The classifier that was written."""
        return self.tuned.output

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        steps = ("factorized", "tuned", "before", "without_training", "after")
        return {**{name: getattr(self, name).to_dict() for name in steps}, "notes": list(self.notes)}
