"""The paper's two networks in plain PyTorch, with the names that embcompress gives their parts.

With these, ``embcompress.load`` puts a compressed table into a module whose time and operations can be
measured; and a network that embcompress does not have, the DAN that multiplies by the right factor token by
token, is trained with ``factory="networks:token_by_token"``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LSTM_UNITS, DAN_UNITS, DROPOUT = 150, (1024, 512), 0.4


class LSTM(nn.Module):
    """Embeddings, an LSTM, the mean of its states over a text, scores."""

    def __init__(self, tokens: int, labels: int, padding: int, dimension: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dimension, padding_idx=padding)
        self.lstm = nn.LSTM(dimension, LSTM_UNITS, batch_first=True)
        self.output = nn.Linear(LSTM_UNITS, labels)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (texts × labels) of ids (texts × longest)."""
        states, _ = self.lstm(self.dropout(self.embedding(tokens)))
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mean = (states * inside[..., None]).sum(dim=1) / lengths[:, None]
        return self.output(self.dropout(mean))


class DAN(nn.Module):
    """The mean of a text's embeddings, two hidden layers, scores.

    Args:
        tokens: rows of the table.
        labels: number of labels.
        padding: id that fills short texts up.
        dimension: width of the table.
        bag: take the mean while rows are looked up, so that a right factor multiplies once a text; else
            once a token.
    """

    def __init__(self, tokens: int, labels: int, padding: int, dimension: int, *, bag: bool = True) -> None:
        super().__init__()
        if bag:
            self.embedding = nn.EmbeddingBag(tokens, dimension, mode="mean", padding_idx=padding)
        else:
            self.embedding = nn.Embedding(tokens, dimension, padding_idx=padding)
        first, second = DAN_UNITS
        drop = nn.Dropout(DROPOUT)
        self.layers = nn.Sequential(
            drop, nn.Linear(dimension, first), nn.ReLU(), drop, nn.Linear(first, second), nn.ReLU(), drop
        )
        self.output = nn.Linear(second, labels)
        self._padding, self._bag = padding, bag

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002 - padding is not averaged
        """Scores (texts × labels) of ids (texts × longest)."""
        vectors = self.embedding(tokens)
        if not self._bag:
            inside = (tokens != self._padding)[..., None]
            vectors = (vectors * inside).sum(dim=1) / inside.sum(dim=1)
        return self.output(self.layers(vectors))


def token_by_token(tokens: int, labels: int, padding: int) -> nn.Module:
    """A DAN that takes the mean of whole vectors, as wide as the vectors of the paper."""
    return DAN(tokens, labels, padding, 300, bag=False)
