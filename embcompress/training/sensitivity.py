"""Which directions of a table's rows move a classifier's scores.

To first order an error e of a token's row moves the scores of a text by e Jᵀ, where J is the Jacobian of the
scores with respect to that row (C×d). So the squared move is e JᵀJ eᵀ, which is summed over tokens and texts.
A random combination v of the scores has the gradient v J, and E[(vJ)ᵀ(vJ)] = JᵀJ if v has the covariance I
(Hutchinson 1990). Scores that all move by as much change no label, so v adds up to 0.

Scores are taken rather than the shares of the labels: a trained classifier is so sure of the texts it has
learned from that these hardly move, and what is left comes from a few texts.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embcompress.data.encoded import sorted_batches
from embcompress.progress import Progress
from embcompress.training.scoring import Dataset, tensors_of

_BATCH, _TOKENS = 64, 1 << 14
"""Most texts, and most token ids with padding, whose gradients are computed together."""

_CPU = torch.device("cpu")
"""Where the gradients are computed: the same to the bit each time, so that a run can be resumed."""


def score_products(
    model: nn.Module, table: nn.Parameter, data: Dataset, seed: int, progress: Progress
) -> NDArray[np.float64]:
    """Σ JᵀJ over the distinct tokens of the texts, for the Jacobian J of a text's scores at the token's row.

    The mean score of a text is subtracted from its scores.

    Args:
        model: the classifier, called as ``Classifier.forward`` is; it is left on the CPU, in evaluation mode.
        table: its table (V×d), one of its parameters.
        data: the texts.
        seed: of the random combinations of scores.
        progress: called as ``progress("metric", done, total)`` with numbers of texts.

    Returns:
        d×d, symmetric; NaN or infinite if a gradient is, zero if no score depends on the table.
    """
    model.to(_CPU).eval()
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros((table.shape[1], table.shape[1]))
    done = 0
    for rows in sorted_batches(data.texts.lengths, _BATCH, _TOKENS):
        tokens, lengths, _ = tensors_of(data, rows, _CPU)
        scores = model(tokens, lengths).float()
        by = torch.randn(scores.shape, generator=generator)
        score = (scores * (by - by.mean(dim=1, keepdim=True))).sum()
        (found,) = torch.autograd.grad(score, table, allow_unused=True)
        if found is not None:
            # The gradient of a row adds up over the texts of a batch. Their combinations of scores are
            # independent, so the products of one text's part with another's vanish on average.
            total += gram_of(found[np.unique(tokens.numpy())])
        done += len(rows)
        progress("metric", done, len(data))
    return total


def gram_of(gradients: Tensor) -> NDArray[np.float64]:
    """Σ gᵀg over gradients (…×d): products in float32; sum those of batches in float64."""
    flat = gradients.reshape(-1, gradients.shape[-1]).float()
    return (flat.T @ flat).double().numpy(force=True)
