"""What every classifier offers, and the record from which one is built again.

A classifier is one file with a subclass of :class:`Classifier` and one line in ``CLASSIFIERS``
(``classifiers/__init__.py``); contract tests run over that registry.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from embcompress.choices import DROPOUT

MODULE = "module"
"""Name of the architecture of a user's own module."""

TABLE = "embedding.weight"
"""Name of the embedding table in every classifier of ours."""


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of a classifier, but for the numbers of tokens and labels.

    Attributes:
        name: registry name, or ``"module"`` for a module of the user's own.
        dimension: width of the embedding, d.
        hidden: units of each hidden layer; empty for a module of the user's own.
        dropout: share of units dropped in training, 0 to below 1.
        bidirectional: read texts in both directions as well (LSTM).
        factory: ``package.module:function`` of a user's own module, empty for ours.
    """

    name: str
    dimension: int
    hidden: tuple[int, ...]
    dropout: float
    bidirectional: bool = False
    factory: str = ""


class Classifier(nn.Module, abc.ABC):
    """Scores the labels of texts.

    Attributes:
        name: registry name, as in ``--arch``.
        hidden: default units of its hidden layers.
        dropout_rate: default share of units dropped.
    """

    name: ClassVar[str]
    hidden: ClassVar[tuple[int, ...]]
    dropout_rate: ClassVar[float] = DROPOUT

    @classmethod
    @abc.abstractmethod
    def build(cls, architecture: Architecture, *, tokens: int, labels: int, padding: int) -> Self:
        """A classifier with fresh weights.

        Args:
            architecture: its sizes.
            tokens: rows of the table, V.
            labels: number of labels, C.
            padding: id of the token that fills short texts up; its row is and stays zero.

        Raises:
            UsageError: sizes that this classifier cannot have.
        """

    @abc.abstractmethod
    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B×C) of texts.

        Args:
            tokens: ids (B×L, int64), filled up with the padding id at the end.
            lengths: ids of each text (B, int64) without padding, at least 1.
        """
