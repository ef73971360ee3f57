"""The deep averaging network: the mean of a text's token vectors, then hidden layers.

Iyyer, Manjunatha, Boyd-Graber & Daumé III 2015, "Deep Unordered Composition Rivals Syntactic
Methods for Text Classification", section 3; sizes as in Acharya et al. 2019 (arXiv:1811.00641).
"""

from __future__ import annotations

import itertools
from typing import Self

from torch import Tensor, nn

from embcompress.choices import HIDDEN
from embcompress.classifiers.base import Architecture, Classifier


class DAN(Classifier):
    """Mean of embeddings, hidden layers with ReLU and dropout, scores.

    The table is an ``nn.EmbeddingBag``: the mean is taken while rows are gathered, so no tensor of
    texts × length × d is made. Once the table is factorized the mean is taken of rows r wide, and the
    right factor multiplies once a text instead of once a token.
    """

    name = "dan"
    hidden = HIDDEN[name]

    def __init__(self, architecture: Architecture, tokens: int, labels: int, padding: int) -> None:
        super().__init__()
        widths = (architecture.dimension, *architecture.hidden)
        self.embedding = nn.EmbeddingBag(tokens, widths[0], mode="mean", padding_idx=padding)
        layers = ((nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths))
        drop = nn.Dropout(architecture.dropout)
        self.layers = nn.Sequential(drop, *(part for layer in layers for part in (*layer, drop)))
        self.output = nn.Linear(widths[-1], labels)

    @classmethod
    def build(cls, architecture: Architecture, *, tokens: int, labels: int, padding: int) -> Self:
        """See the base class."""
        return cls(architecture, tokens, labels, padding)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002 - padding is not averaged
        """See the base class."""
        scores: Tensor = self.output(self.layers(self.embedding(tokens)))
        return scores
