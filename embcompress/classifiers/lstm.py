"""The LSTM classifier: the mean of the hidden states over a text, then scores.

Hochreiter & Schmidhuber 1997; one layer of 150 units and the mean of its states, as in Acharya et
al. 2019 (arXiv:1811.00641).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from embcompress.choices import HIDDEN
from embcompress.classifiers.base import Architecture, Classifier
from embcompress.errors import UsageError


class LSTM(Classifier):
    """Embeddings, an LSTM in one or both directions, the mean of its states, scores."""

    name = "lstm"
    hidden = HIDDEN[name]

    def __init__(self, architecture: Architecture, tokens: int, labels: int, padding: int) -> None:
        super().__init__()
        units, layers = architecture.hidden[0], len(architecture.hidden)
        self.embedding = nn.Embedding(tokens, architecture.dimension, padding_idx=padding)
        self.dropout = nn.Dropout(architecture.dropout)
        self.lstm = nn.LSTM(
            architecture.dimension,
            units,
            num_layers=layers,
            batch_first=True,
            dropout=architecture.dropout if layers > 1 else 0.0,
            bidirectional=architecture.bidirectional,
        )
        self.output = nn.Linear(units * (2 if architecture.bidirectional else 1), labels)

    @classmethod
    def build(cls, architecture: Architecture, *, tokens: int, labels: int, padding: int) -> Self:
        if len(set(architecture.hidden)) != 1:
            raise UsageError(
                f"hidden layers of {', '.join(map(str, architecture.hidden))} units",
                remedy="the layers of an LSTM are all of one size: --hidden 150, or 150,150 for two",
            )
        return cls(architecture, tokens, labels, padding)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B×C) of texts; padding does not affect them.

        Padding is at the end, so a forward LSTM reads it after all the states that count. Leaving it in
        is exact, and twice as fast on a CPU as packing. A backward LSTM would read it first, so a
        bidirectional one packs the texts.
        """
        embedded = self.dropout(self.embedding(tokens))
        if self.lstm.bidirectional:
            # Packing needs the lengths on the CPU, whatever the device of the model.
            packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        else:
            states, _ = self.lstm(embedded)
        inside = torch.arange(states.shape[1], device=lengths.device) < lengths[:, None]
        mean = (states * inside[..., None]).sum(dim=1) / lengths[:, None]
        scores: Tensor = self.output(self.dropout(mean))
        return scores
