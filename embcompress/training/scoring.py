"""Labelled texts as token ids, and the scores that a model gives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embcompress.data.encoded import Encoded, Ids, sorted_batches
from embcompress.errors import UsageError
from embcompress.training.devices import Runtime

_BATCH, _TOKENS = 256, 1 << 16
"""Most texts, and most token ids with padding, that are scored together, so that memory is bounded."""

_SCORES = 1 << 30
"""Most scores that are held, of four bytes."""


@dataclass(frozen=True)
class Dataset:
    """Texts as token ids, with their labels.

    Attributes:
        texts: token ids.
        labels: number of each text's label (texts).
        padding: id that pads short texts.
    """

    texts: Encoded
    labels: Ids
    padding: int

    def __len__(self) -> int:
        return len(self.labels)


@torch.no_grad()
def scores_of(model: nn.Module, data: Dataset, runtime: Runtime) -> Tensor:
    """Scores (texts×C, float32 on the CPU) in the order of ``data``; leaves the model in evaluation mode.

    They are computed in the model's own precision, so that they do not depend on how it was trained.

    Raises:
        UsageError: there are too many of them.
    """
    model.eval()
    batches = sorted_batches(data.texts.lengths, _BATCH, _TOKENS)
    scores = torch.empty(0)
    for rows in batches:
        tokens, lengths, _ = tensors_of(data, rows, runtime.device)
        some = model(tokens, lengths).float().cpu()
        if not scores.numel():
            scores = torch.empty(_checked(len(data), some.shape[1]))
        scores[torch.from_numpy(rows)] = some
    return scores


def _checked(texts: int, labels: int) -> tuple[int, int]:
    if texts * labels > _SCORES:
        raise UsageError(
            f"{texts:,} texts and {labels:,} labels have {texts * labels:,} scores, limit {_SCORES:,}",
            remedy="give fewer texts at a time",
        )
    return texts, labels


def accuracy_of(scores: Tensor, data: Dataset) -> float:
    """Fraction of texts whose label has the highest score."""
    return float((scores.argmax(dim=1) == torch.from_numpy(data.labels)).double().mean())


def tensors_of(data: Dataset, rows: Ids, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (rows × longest), lengths and labels of some texts."""
    arrays = (data.texts.padded(rows, data.padding), data.texts.lengths[rows], data.labels[rows])
    # Not non_blocking: these arrays may be freed before an MPS stream has copied them.
    tokens, lengths, labels = (torch.from_numpy(array).to(device) for array in arrays)
    return tokens, lengths, labels
