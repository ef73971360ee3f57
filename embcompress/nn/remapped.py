"""A lookup in which tokens share rows by a list, as in vocabulary-quantized models of model2vec."""

from __future__ import annotations

import torch
from torch import Tensor

from embcompress.nn.lookup import CodedLookup, require


class RemappedRows(CodedLookup):
    """Looks up the row that a list gives each token, times a factor for each token.

    Args:
        inner: looks up the rows (K).
        mapping: row of each token (V integers below K); None if tokens and rows are the same.
        weights: factor of each token (V); None for 1.

    Raises:
        InputError: they do not fit each other.
    """

    mapping: Tensor | None
    weights: Tensor | None

    def __init__(self, inner: CodedLookup, mapping: Tensor | None, weights: Tensor | None) -> None:
        tokens = inner.num_embeddings if mapping is None else mapping.numel()
        super().__init__(tokens, inner.embedding_dim)
        self.inner = inner
        self.hold(mapping=mapping, weights=weights)
        self.derive()

    @property
    def stored(self) -> Tensor:
        """One entry for each token."""
        return self.inner.stored if self.mapping is None else self.mapping

    @property
    def dtype(self) -> torch.dtype | None:
        return self.inner.dtype

    def rows(self, numbers: Tensor) -> Tensor:
        places = numbers if self.mapping is None else self.mapping.index_select(0, numbers).long()
        rows: Tensor = self.inner(places)
        return rows if self.weights is None else rows * self.weights.index_select(0, numbers)[:, None]

    def derive(self) -> None:
        tokens, count = self.num_embeddings, self.inner.num_embeddings
        if (mapping := self.mapping) is not None:
            integers = mapping.dim() == 1 and not (mapping.is_floating_point() or mapping.is_complex())
            require(integers, f"the mapping is {list(mapping.shape)} of {mapping.dtype}")
            inside = mapping.numel() == 0 or (int(mapping.min()) >= 0 and int(mapping.max()) < count)
            require(inside, f"the mapping leads out of {count:,} rows")
        if self.weights is not None:
            floats = self.weights.is_floating_point() and self.weights.shape == (tokens,)
            require(floats, f"the weights are {list(self.weights.shape)} for {tokens:,} tokens")
