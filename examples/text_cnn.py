"""A module of your own for ``embcompress train --model``: a convolutional text classifier (Kim 2014).

    cd examples
    embcompress train data/intents_train.csv --model text_cnn:build -o cnn.pt
    embcompress compress cnn.pt data/intents_train.csv --model text_cnn:build --ratio 0.9 -o small.pt

All that is asked of it: an ``nn.Embedding`` with one row a token, and ``forward(tokens, lengths)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextCNN(nn.Module):
    """Convolutions over windows of a few tokens, the largest answer of each, scores."""

    def __init__(
        self, tokens: int, labels: int, padding: int, dimension: int = 100, filters: int = 100
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dimension, padding_idx=padding)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dimension, filters, width, padding=2) for width in (3, 4, 5)
        )
        self.output = nn.Sequential(nn.Dropout(0.5), nn.Linear(3 * filters, labels))
        nn.init.normal_(self.embedding.weight, std=0.01)  # noise that training can drown has a low rank
        with torch.no_grad():
            self.embedding.weight[padding] = 0

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (texts × labels) of ids (texts × longest); beyond its length a text is padding."""
        embedded = self.embedding(tokens).transpose(1, 2)
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        answers = (
            F.relu(conv(embedded))[..., : tokens.shape[1]] * inside[:, None] for conv in self.convolutions
        )
        return self.output(torch.cat([answer.amax(dim=2) for answer in answers], dim=1))


def build(tokens: int, labels: int, padding: int) -> nn.Module:
    """What ``--model text_cnn:build`` calls."""
    return TextCNN(tokens, labels, padding)
