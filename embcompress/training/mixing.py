"""Mix tokens of the whole vocabulary into texts, so that a model learns about those that the texts lack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from embcompress.data.shares import Shares


class Mixture:
    """Replaces tokens of texts by drawn ones.

    Args:
        shares: how often each token is to be drawn (V), relative to the others.
        fixed: tokens that are neither drawn nor replaced: those that the tokenizer adds.
        fraction: of the other tokens that are replaced, 0 to 1.
        seed: of the draws.
    """

    def __init__(self, shares: Shares, fixed: Sequence[int], fraction: float, seed: int) -> None:
        shares = shares.astype(np.float64)
        shares[[*fixed]] = 0
        self._sums = np.cumsum(shares)
        self._last = int(shares.nonzero()[0].max(initial=0))
        self._fixed = torch.tensor([*fixed], dtype=torch.long)
        self._fraction = fraction if self._sums[-1] > 0 else 0.0
        self._seed = seed

    def __call__(self, tokens: Tensor, step: int, part: int) -> Tensor:
        """Token ids (B×L) in which others stand for some.

        Args:
            tokens: the ids.
            step: of the training.
            part: of its batch. The same step and part always get the same draws.
        """
        if not self._fraction:
            return tokens
        rng = np.random.default_rng((self._seed, step, part, 1))
        uniform = rng.random((2, *tokens.shape))
        drawn = np.searchsorted(self._sums, uniform[0] * self._sums[-1], side="right").clip(max=self._last)
        replaced = torch.from_numpy(uniform[1] < self._fraction).to(tokens.device)
        replaced &= ~torch.isin(tokens, self._fixed.to(tokens.device))
        return torch.where(replaced, torch.from_numpy(drawn).to(tokens.device), tokens)
