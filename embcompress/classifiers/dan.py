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

    The table is an ``nn.EmbeddingBag``: it averages rows as it reads them, so no tensor of
    texts × length × d is made. Once the table is factorized, rows of width r are averaged, and the
    right factor is applied once per text instead of once per token.
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
        return cls(architecture, tokens, labels, padding)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002 - padding is not averaged
        scores: Tensor = self.output(self.layers(self.embedding(tokens)))
        return scores
