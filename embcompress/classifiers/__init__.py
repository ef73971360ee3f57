"""Text classifiers: the architectures, one a file, with their registry; storing and opening classifiers."""

from __future__ import annotations

from embcompress.classifiers.base import Classifier
from embcompress.classifiers.dan import DAN
from embcompress.classifiers.lstm import LSTM
from embcompress.errors import check_choice

CLASSIFIERS: dict[str, type[Classifier]] = {kind.name: kind for kind in (DAN, LSTM)}
"""Every classifier by name, as ``choices.ARCHITECTURES`` lists them; contract tests run over it."""


def classifier_for(name: str) -> type[Classifier]:
    """The classifier registered under ``name``.

    Raises:
        UsageError: there is no such classifier.
    """
    check_choice("classifier", name, CLASSIFIERS)
    return CLASSIFIERS[name]
