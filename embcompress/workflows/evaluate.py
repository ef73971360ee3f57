"""open classifier → read texts → scores → confusion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.record import ClassifierRecord
from embcompress.data.labelled import LabelledTexts
from embcompress.reports.learning import EvaluateResult
from embcompress.runs.sessions import USUAL_SESSION, Session
from embcompress.runs.texts import Texts, dataset
from embcompress.training.metrics import Confusion
from embcompress.training.scoring import scores_of


def evaluate(
    path: str | Path,
    texts: str | Path | Texts,
    *,
    factory: str | None = None,
    session: Session = USUAL_SESSION,
) -> EvaluateResult:
    """Measure a classifier, dense or compressed, on labelled texts.

    Args:
        path: a classifier written by ``train``, ``factorize`` or ``finetune``, or the Hugging Face directory
            of a model for sequence classification.
        texts: a file of labelled texts, or where they are and how to read them.
        factory: ``package.module:function`` of a classifier of the user's own.
        session: where it runs.

    Raises:
        UsageError: the checkpoint is no classifier, or needs another factory.
        InputError: the checkpoint or the texts are corrupt, or the texts have a label it does not know.
    """
    wanted = Texts.of(texts)
    return measure(Path(path), lambda record: wanted.read_file(wanted.train, record), factory, session)


def measure(
    path: Path, texts: Callable[[ClassifierRecord], LabelledTexts], factory: str | None, session: Session
) -> EvaluateResult:
    """Do what :func:`evaluate` does, with the texts that ``texts`` gives for the classifier's record."""
    where = session.runtime()
    opened = open_classifier(path, factory=factory)
    read = texts(opened.record)
    data = dataset(opened.record, read)
    scores = scores_of(opened.model.to(where.device), data, where)
    confusion = Confusion.of(opened.record.labels, data.labels, scores.argmax(dim=1).numpy())
    return EvaluateResult(path, read.path, opened.size, confusion, ())
