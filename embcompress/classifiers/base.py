"""The interface of every classifier, and the architecture from which one is built.

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
"""Architecture name of a user's own module."""

TABLE = "embedding.weight"
"""Name of the embedding table in every classifier of this package."""


@dataclass(frozen=True)
class Architecture:
    """The shapes of a classifier, apart from the numbers of tokens and labels.

    Attributes:
        name: registry name, or ``"module"`` for a user's own module.
        dimension: width of the embedding, d.
        hidden: units of each hidden layer; empty for a user's own module.
        dropout: fraction of units dropped in training, from 0 to below 1.
        bidirectional: whether texts are read in both directions (LSTM).
        factory: ``package.module:function`` of a user's own module, empty for built-in ones.
    """

    name: str
    dimension: int
    hidden: tuple[int, ...]
    dropout: float
    bidirectional: bool = False
    factory: str = ""


class Classifier(nn.Module, abc.ABC):
    """A network that scores the labels of texts.

    Attributes:
        name: registry name, as in ``--arch``.
        hidden: default units of its hidden layers.
        dropout_rate: default fraction of units dropped.
    """

    name: ClassVar[str]
    hidden: ClassVar[tuple[int, ...]]
    dropout_rate: ClassVar[float] = DROPOUT

    @classmethod
    @abc.abstractmethod
    def build(cls, architecture: Architecture, *, tokens: int, labels: int, padding: int) -> Self:
        """Make a classifier with fresh weights.

        Args:
            architecture: its sizes.
            tokens: rows of the table, V.
            labels: number of labels, C.
            padding: id of the token that pads short texts; its row is zero and stays so.

        Raises:
            UsageError: this classifier does not allow these sizes.
        """

    @abc.abstractmethod
    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B×C) of texts.

        Args:
            tokens: ids (B×L, int64), padded at the end with the padding id.
            lengths: number of ids of each text (B, int64) without padding, at least 1.
        """
