"""open classifier → scores → labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embcompress.classifiers.opening import open_classifier
from embcompress.runs.sessions import USUAL_SESSION, Session
from embcompress.training.scoring import Dataset, scores_of


def predict(
    path: str | Path,
    texts: Sequence[str],
    *,
    factory: str | None = None,
    session: Session = USUAL_SESSION,
) -> tuple[str, ...]:
    """The label that a classifier gives each text.

    Args:
        path: a classifier written by ``train``, ``factorize`` or ``finetune``, or the Hugging Face directory
            of a model for sequence classification.
        texts: one or more.
        factory: ``package.module:function`` of a classifier of the user's own.
        session: where it runs.

    Raises:
        UsageError: the checkpoint is no classifier, or needs another factory.
        InputError: the checkpoint is corrupt.
    """
    where = session.runtime()
    opened = open_classifier(path, factory=factory)
    tokenizer = opened.record.tokenizer
    encoded = tokenizer.encode(texts, opened.record.max_length)
    data = Dataset(encoded, np.zeros(len(encoded), np.int64), tokenizer.padding)
    scores = scores_of(opened.model.to(where.device), data, where)
    return tuple(opened.record.labels[number] for number in scores.argmax(dim=1).tolist())
